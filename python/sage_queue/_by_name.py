"""Floor 2: queues by name — making, finding, listing and removing them, one at a time or all.

Nothing here prints, and nothing touches a queue that somebody is attached to, unless it is named.
"""

from __future__ import annotations

import errno
import os

from . import _native
from ._address import boot_id, full_name, host_name, login_name, safe, user_name, user_namespace
from ._errors import QueueNotFound, SageQueueError
from ._queue import SageQueue, SageQueueRef

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from typing import Any

#: Any permissions say that other users' queues are meant as well; which they have is theirs to say.
_OF_ANYBODY = 0o777


def create_queue(name: str | None = None, maxsize: int = 0, **options: Any) -> SageQueue[Any]:
    """SageQueue(name, maxsize, ...): the queue of that name, created if need be."""
    return SageQueue(name, maxsize, **options)


def open_queue(name: str, **options: Any) -> SageQueue[Any]:
    """The queue of that name; QueueNotFound if there is none."""
    return SageQueue(name, mode="open", **options)


def destroy_queue(
    name: str, *, namespace: str | None = None, enable_multi_tenant: bool | None = None, all_users: bool = False
) -> bool:
    """Remove a queue by name, also one that is damaged.  Those who are attached can go on.  Returns whether there was one.

    With `all_users`, also if it is another user's, as far as the system lets this one: root may, and nobody else in /dev/shm.
    """
    return _native.unlink_name(
        full_name(name, user_namespace(namespace, enable_multi_tenant)), permissions=_OF_ANYBODY if all_users else 0
    )


def list_queues(namespace: str | None = None) -> list[SageQueueRef]:
    """References to this user's queues, by name; with `namespace`, to those in it.

    A look from outside, which attaches to none of them and changes nothing; approximate, for others come and go.  Left out is what cannot
    be attached to (damaged, of another layout, a name that is no UTF-8); `sage-queue ls` shows that, too.
    """
    found = []
    for seen in _native.observe_all(_native.default_directory()):
        if seen.name is None or seen.uid != os.geteuid() or (namespace is not None and not seen.name.startswith(namespace + "/")):
            continue
        reference = _reference_to(seen)
        if reference is not None:
            found.append(reference)
    return found


def _reference_to(seen: _native.Observation) -> SageQueueRef | None:
    """A reference to the queue, whatever its serializer, also one that is not known here."""
    info = seen.info
    if not seen.is_usable or info is None or seen.name is None:
        return None
    try:
        return SageQueueRef(
            seen.name,
            info.id,
            maxsize=info.maxsize,
            capacity=info.capacity,
            arena=info.arena,
            serializer=info.tag or "raw",
            directory=os.path.dirname(seen.path),
            permissions=info.permissions,
            auto_cleanup=info.auto_cleanup,
            creator_pid=info.creator_pid,
            host=host_name(),
            boot_id=boot_id(),
        )
    except ValueError:  # a name, or a number, that no Python program has given
        return None


def remove_observed(seen: _native.Observation, *, all_users: bool = False) -> bool:
    """Remove what was seen, by its name.  Returns whether it was still there."""
    if seen.condition == "no file" or seen.is_misplaced or seen.name is None:
        problem = seen.problem() or "has a name that is longer than its file name can tell"
        raise QueueNotFound(errno.ENOENT, f"{safe(seen.path)} {problem}: no queue's name leads to it; remove the file itself")
    if _native.unlink_name(seen.name, permissions=_OF_ANYBODY if all_users else 0):
        return True
    if os.path.lexists(seen.path):
        raise QueueNotFound(errno.ENOENT, f"no queue's name leads to {safe(seen.path)}; remove the file itself")
    return False


def collect_garbage(*, all_users: bool = False) -> int:
    """Remove every queue that provably nobody is attached to and that is empty, unnamed or auto-cleanup.  Returns how many.

    With `all_users`, also other users', as far as the system lets this one.
    """
    return _native.collect(permissions=_OF_ANYBODY if all_users else 0)


# ---- as SAGE's first queue had them ----


def list_all_sage_queues() -> list[dict[str, Any]]:
    """What is known about every queue in the directory, also about those that cannot be opened.

    name            the full name (of a long one that cannot be opened, what its file is called)
    original_name, namespace   what stands behind, and before, the last slash of the name
    owner           the login name of the file's owner
    size            bytes of the file; `used_bytes` of them take memory
    status          "Running" (a process is attached), "Dead" (none is), "Unknown" (this is no queue that can be looked into)
    pid             the process that made it, 0 if "Unknown"; `items` and `maxsize` likewise
    file            its path

    A look from outside, as list_queues(); approximate, for others come and go.  Whoever may write to the directory chooses the names.
    """
    return [_describe(seen) for seen in _native.observe_all(_native.default_directory())]


def _describe(seen: _native.Observation) -> dict[str, Any]:
    name = seen.file if seen.name is None else seen.name
    namespace, slash, original = name.rpartition("/")
    info, stats = (seen.info, seen.stats) if seen.is_usable else (None, None)
    return {
        "name": name,
        "original_name": original,
        "namespace": namespace if slash else None,
        "pid": info.creator_pid if info else 0,
        "owner": login_name(seen.uid),
        "size": seen.file_bytes,
        "used_bytes": seen.memory_bytes,
        "items": stats["items"] if stats else 0,
        "maxsize": info.maxsize if info else 0,
        "status": "Unknown" if stats is None else "Running" if seen.is_attached else "Dead",
        "file": seen.path,
    }


def cleanup_invalid_queues() -> int:
    """collect_garbage(): remove what dead processes left behind and nobody can want.  Returns how many.

    Queues that a process is attached to stay, and so do those with messages in them.
    """
    return collect_garbage()


def cleanup_user_queues(user: str | None = None, force: bool = False) -> int:
    """Remove the queues of a user (by default this one, by the name that `enable_multi_tenant` gives it).  Returns how many.

    Those are the queues in the namespace of that name, and those whose file belongs to the user with that login name.  Without `force`
    only those go that have no reason to stay; with it, also those with messages in them and the persistent ones.  A queue that
    a process is attached to stays in any case, and so does one that cannot be opened.
    """
    user = user_name() if user is None else user
    removed = 0
    for seen in _native.observe_all(_native.default_directory()):
        if seen.name is not None and (seen.name.startswith(user + "/") or login_name(seen.uid) == user):
            removed += _remove_unless_in_use(seen, force)
    return removed


def _remove_unless_in_use(seen: _native.Observation, force: bool) -> bool:
    if not seen.is_usable or seen.is_attached or seen.name is None or seen.info is None:
        return False
    name, info = seen.name, seen.info
    try:
        _native.close(_native.open_by_name(name))  # the last to leave removes it, if it has no reason to stay
        if force and os.path.lexists(seen.path):
            # Put an equal, empty queue in its place, which only works while nobody is attached, and leave that.
            handle = _native.create(
                name,
                mode="fresh",
                maxsize=info.maxsize,
                capacity=info.capacity,
                arena=info.arena,
                auto_cleanup=info.auto_cleanup,
                persistent=False,
                permissions=info.permissions,
                label=None,
                tag=info.tag,
                note=info.note,
                keep_warm=info.keep_warm,
                max_attempts=info.max_attempts,
                dead_letter=info.dead_letter,
            )
            _native.close(handle)
    except QueueNotFound:
        pass  # opening it has removed it, or another process was faster
    except (SageQueueError, OSError):
        return False
    return not os.path.lexists(seen.path)
