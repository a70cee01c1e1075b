"""Floor 2: what becomes of a message that nobody can handle.

How often a message may be handed out, and which queue it goes to after that, is fixed with the queue, and the C library sees to it for
every consumer.  Here is what a user may wish, and the sentence for when a message cannot be moved.
"""

from __future__ import annotations

from . import _native
from ._address import as_int, full_name
from ._errors import Full, SageQueueError

DEAD_LETTER_MAX_BYTES = 319
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

    @classmethod
    def of(cls, info: _native.Info) -> Retries:
        """What the queue was made with."""
        return cls(info.max_attempts, info.dead_letter)


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
    if len(target.encode()) > DEAD_LETTER_MAX_BYTES:
        raise ValueError(f"the name of the dead_letter queue is too long; {DEAD_LETTER_MAX_BYTES} bytes as UTF-8 are the most")
    return retries


def refusal(queue_name: str, info: _native.Info, directory: str, status: int) -> SageQueueError:
    """The exception for a message that has had its attempts and cannot be moved, because of this status."""
    cause: Exception
    if status in (_native.TIMEOUT, _native.ARENA_FULL):
        cause = Full("it is full")
    elif status == _native.INVALID:
        cause = ValueError(f"that was made with serializer={_serializer_of(info, directory)!r}, not {info.tag or 'raw'!r}")
    else:
        cause = _native.error_of(status, name=info.dead_letter, directory=directory, info=info)
    error = SageQueueError(
        f"a message of queue {queue_name!r} has been handed out {info.max_attempts} times in vain, and cannot be moved to its dead-letter "
        f"queue {info.dead_letter!r}: {cause}; it stays where it is"
    )
    error.__cause__ = cause
    error.code = _native.DEAD_LETTER
    return error


def _serializer_of(info: _native.Info, directory: str) -> str:
    """Of the dead-letter queue, as far as it can be asked."""
    try:
        handle = _native.open_by_name(str(info.dead_letter), permissions=info.permissions, directory=directory)
    except (SageQueueError, OSError):
        return "another one"
    tag = _native.Info(handle).tag
    _native.close(handle)
    return tag or "raw"
