"""Floor 2: queues by name — making, finding, listing and removing them, one at a time or all.

Nothing here prints, and nothing touches a queue that somebody is attached to, unless it is named.
"""

from __future__ import annotations

import os

from . import _native
from ._address import full_name, user_name, user_namespace
from ._errors import QueueAccessDenied, QueueBusy, QueueCorrupt, QueueCrowded, QueueNotFound, QueueVersionError, SageQueueError
from ._queue import SageQueue, SageQueueRef, _reference_of

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from typing import Any


def create_queue(name: str | None = None, maxsize: int = 0, **options: Any) -> SageQueue[Any]:
    """SageQueue(name, maxsize, ...): the queue of that name, created if need be."""
    return SageQueue(name, maxsize, **options)


def open_queue(name: str, **options: Any) -> SageQueue[Any]:
    """The queue of that name; QueueNotFound if there is none."""
    return SageQueue(name, mode="open", **options)


def destroy_queue(name: str, *, namespace: str | None = None, enable_multi_tenant: bool | None = None) -> bool:
    """Remove a queue by name, also one that is damaged.  Those who are attached can go on.  Returns whether there was one."""
    return _native.unlink_name(full_name(name, user_namespace(namespace, enable_multi_tenant)))


def list_queues(namespace: str | None = None) -> list[SageQueueRef]:
    """References to the queues that this user can open, by name; with `namespace`, to those in it.

    (Approximate: others come and go.)  What cannot be opened is left out; `sage-queue ls` shows that, too.
    """
    found = []
    for _, name in _native.names_in(_native.default_directory()):
        if name is None or (namespace is not None and not name.startswith(namespace + "/")):
            continue
        try:
            found.append(reference_to(name))
        except (SageQueueError, OSError):
            continue
    return found


def reference_to(name: str) -> SageQueueRef:
    """A reference to the queue of that full name, whatever its serializer, also one that is not known here."""
    handle = _native.open_by_name(name)
    try:
        info = _native.Info(handle)
        return _reference_of(handle, info, info.tag or "raw")
    finally:
        _native.close(handle)


def collect_garbage() -> int:
    """Remove every queue that provably nobody is attached to and that is empty, unnamed or auto-cleanup.  Returns how many."""
    return _native.collect()


# ---- as SAGE's first queue had them ----


def list_all_sage_queues() -> list[dict[str, Any]]:
    """What is known about every queue in the directory, also about those that cannot be opened.

    name            the full name (of a long one that cannot be opened, what its file is called)
    original_name, namespace   what stands behind, and before, the last slash of the name
    owner           the login name of the file's owner
    size            bytes of the file; `used_bytes` of them take memory
    status          "Running" (somebody is attached), "Dead" (nobody is, but something is in it), "Unknown" (it cannot be opened)
    pid             who made it, 0 if it cannot be opened; `items` and `maxsize` likewise
    file            its path

    (Approximate: others come and go.)
    """
    directory = _native.default_directory()
    rows = [_describe(os.path.join(directory, file), file, name) for file, name in _native.names_in(directory)]
    return [row for row in rows if row is not None]


def _describe(path: str, file: str, name: str | None) -> dict[str, Any] | None:
    """One row; None if it is gone by now."""
    shown = file if name is None else name
    namespace, slash, original = shown.rpartition("/")
    status, pid, items, maxsize = "Unknown", 0, 0, 0
    if name is not None:
        try:
            handle = _native.open_by_name(name)
            try:
                info, stats = _native.Info(handle), _native.stats(handle)
            finally:
                _native.close(handle)
            pid, items, maxsize = info.creator_pid, stats["items"], info.maxsize
            status = "Running" if stats["participants"] > 1 else "Dead"  # one is this call
        except (SageQueueError, OSError):
            pass
    try:
        facts = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return {
        "name": shown,
        "original_name": original,
        "namespace": namespace if slash else None,
        "pid": pid,
        "owner": _login_name(facts.st_uid),
        "size": facts.st_size,
        "used_bytes": facts.st_blocks * 512,
        "items": items,
        "maxsize": maxsize,
        "status": status,
        "file": path,
    }


def _login_name(uid: int) -> str:
    import pwd  # here: few need it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid_{uid}"


def cleanup_invalid_queues() -> int:
    """collect_garbage(): remove what dead processes left behind and nobody can want.  Returns how many.

    Queues that somebody is attached to stay, and so do those with messages in them.
    """
    return collect_garbage()


def cleanup_user_queues(user: str | None = None, force: bool = False) -> int:
    """Remove the queues of a user (by default this one, as `enable_multi_tenant` names him).  Returns how many.

    His are those in the namespace of his name, and those whose file belongs to the user with that login name.  Without `force`
    only those go that have no reason to stay; with it, also those with messages in them and the persistent ones.  A queue that
    somebody is attached to stays in any case, and so does one that cannot be opened.
    """
    user = user_name() if user is None else user
    directory = _native.default_directory()
    removed = 0
    for file, name in _native.names_in(directory):
        path = os.path.join(directory, file)
        if name is not None and (name.startswith(user + "/") or _owner_of(path) == user):
            removed += _remove_unless_in_use(name, path, force)
    return removed


def _owner_of(path: str) -> str | None:
    try:
        return _login_name(os.lstat(path).st_uid)
    except FileNotFoundError:
        return None


def _remove_unless_in_use(name: str, path: str, force: bool) -> bool:
    try:
        handle = _native.open_by_name(name)
        info = _native.Info(handle)
        _native.close(handle)  # who leaves last removes it, if it has no reason to stay
        if force and os.path.lexists(path):
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
        pass  # opening it has removed it, or somebody else was faster
    except (QueueAccessDenied, QueueBusy, QueueCorrupt, QueueCrowded, QueueVersionError):
        return False
    return not os.path.lexists(path)
