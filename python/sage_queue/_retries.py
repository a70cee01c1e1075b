"""Floor 2: what becomes of a message that nobody can handle.

How often a message may be handed out, and which queue it goes to after that, is kept with the queue (the `note` of the C library, as
JSON), so that everybody who opens it does the same.  Whoever meets a message that has had its attempts moves it: puts its bytes as
they are into the other queue, then acknowledges it.  If he dies in between, it is in both.
"""

from __future__ import annotations

import os

from . import _native
from ._address import as_int, full_name
from ._errors import Full, SageQueueError

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NOTE_MAX_BYTES = 511
ATTEMPTS_MAX = 65534  # the C library counts to one more


class Retries:
    """At most `max_attempts` (0: any number), then off to `dead_letter`, a full name."""

    __slots__ = ("max_attempts", "dead_letter")

    def __init__(self, max_attempts: int = 0, dead_letter: str | None = None) -> None:
        self.max_attempts = max_attempts
        self.dead_letter = dead_letter

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retries) and (self.max_attempts, self.dead_letter) == (other.max_attempts, other.dead_letter)

    def __repr__(self) -> str:
        return f"max_attempts={self.max_attempts}, dead_letter={self.dead_letter!r}"

    def to_note(self) -> str:
        if not self.max_attempts:
            return ""
        import json  # here: few need it

        return json.dumps({"max_attempts": self.max_attempts, "dead_letter": self.dead_letter}, ensure_ascii=False)

    @classmethod
    def from_note(cls, note: str) -> Retries:
        """What the note says; a note that is not ours (a C program's) says nothing."""
        if not note.startswith("{"):
            return cls()
        import json

        try:
            values = json.loads(note)
            max_attempts, dead_letter = values["max_attempts"], full_name(values["dead_letter"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls()
        good = type(max_attempts) is int and 0 < max_attempts <= ATTEMPTS_MAX
        return cls(max_attempts, dead_letter) if good else cls()


def parse_retries(max_attempts: int, dead_letter: str | None, name: str | None, namespace: str | None) -> Retries:
    """The caller's wish, checked.  Neither given: none, whatever the queue says holds."""
    attempts = as_int(max_attempts, "max_attempts", "an int (0: any number)")
    if attempts == 0 and dead_letter is None:
        return Retries()
    if not 0 < attempts <= ATTEMPTS_MAX:
        raise ValueError(f"max_attempts={attempts} must be from 1 to {ATTEMPTS_MAX} where there is a dead_letter queue (without: 0)")
    if dead_letter is None:
        raise ValueError(f"max_attempts={attempts} needs dead_letter, the name of the queue for what has had its attempts")
    target = full_name(dead_letter, namespace)
    if target == name:
        raise ValueError(f"dead_letter={dead_letter!r} is the queue itself; take another name")
    retries = Retries(attempts, target)
    if len(retries.to_note().encode()) > NOTE_MAX_BYTES:
        raise ValueError(f"the name of the dead_letter queue is too long; about {NOTE_MAX_BYTES - 50} bytes as UTF-8 are the most")
    return retries


def burier(queue_name: str, info: _native.Info, directory: str, retries: Retries) -> Callable[[bytes, int], None]:
    """What moves a message to the dead-letter queue, which is made as this one is, and stays while something is in it."""

    def bury(message: bytes, attempts: int) -> None:
        target = retries.dead_letter
        try:
            handle = _native.create(
                target,
                mode="open_or_create",
                maxsize=0,
                capacity=info.capacity,
                arena=info.arena,
                auto_cleanup=False,
                persistent=False,
                permissions=info.permissions,
                label=None,
                tag=info.tag,
                note="",
                directory=directory,
            )
            try:
                _put(handle, message, info.tag)
            finally:
                _native.close(handle)
        except (SageQueueError, OSError, Full, ValueError) as error:
            raise SageQueueError(
                f"a message of queue {queue_name!r} has been handed out {attempts - 1} times in vain, and cannot be moved to its dead-letter "
                f"queue {target!r}: {error}; it stays where it is"
            ) from error

    return bury


def _put(handle: Any, message: bytes, tag: str) -> None:
    found = _native.Info(handle)
    if (found.tag or "raw") != (tag or "raw"):
        raise ValueError(f"that was made with serializer={found.tag or 'raw'!r}, not {tag or 'raw'!r}")
    status = _native.put_bytes(handle, message)
    if status in (_native.TIMEOUT, _native.ARENA_FULL):
        raise Full("it is full")
    if status:
        name = _native.name_of(handle)
        directory = os.path.dirname(_native.path_of(handle))
        raise _native.error_of(status, name=name, directory=directory, needed=len(message), info=found)
