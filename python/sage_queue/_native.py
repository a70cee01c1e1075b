"""Floor 1: the only file that knows the C library.

Owns: `ffi` and `lib`; how a status becomes an exception; the memory that C calls need; how long a handle lives, also in the
children of `multiprocessing`, which leave without the C library's destructor.  Refuses to know: what a message means.

The hot path does not go through cffi but through `Port` (port.c), for cffi's calls cost more than the queue itself.
`error_of` explains any status that is not 0.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref

from . import _errors as errors, _ringbuf
from ._address import human_bytes
from ._ringbuf import ffi, lib

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

if lib.sage_install_port() != 0:
    raise ImportError("sage_queue._ringbuf is damaged: its Port cannot be made; install the package again")


def new_port(
    handle: Any,
    loads: Callable[[bytes], Any] | None,
    refuse: Callable[[int, bool, bool, int], None],
    undecodable: Callable[[Exception], Exception | None],
) -> Any:
    """Where messages go through: `port[deadline] = data` puts bytes, `port[deadline]` gets an item; deadline None: for ever.

    `loads` makes an item of bytes (None: it is the bytes).  `refuse(status, is_put, polling, size)` raises what a status means.
    `undecodable(error)` gives the exception for a message that is consumed though it cannot be decoded, or None: it goes back.
    The handle must outlive the port.
    """
    return _ringbuf.Port(int(ffi.cast("uintptr_t", handle)), loads, refuse, undecodable)


join = lib.ringbuf_join  # (handle, deadline) -> status
task_done = lib.ringbuf_task_done  # (handle) -> status

INTERRUPTED: int = lib.RINGBUF_E_INTR
TIMEOUT: int = lib.RINGBUF_E_TIMEOUT
CLOSED: int = lib.RINGBUF_E_CLOSED
TOO_MANY: int = lib.RINGBUF_E_TOO_MANY

VERSION: str = ffi.string(lib.ringbuf_version()).decode()
FOREVER = (1 << 63) - 1


# ---- making, finding and leaving queues ----

_FILE_PREFIX = "ringbuf."
_MODES = {"open_or_create": lib.RINGBUF_OPEN_OR_CREATE, "create": lib.RINGBUF_CREATE, "fresh": lib.RINGBUF_FRESH}


class _Options:
    """A ringbuf_options with what it points to."""

    def __init__(
        self, *, directory: str | None = None, label: str | None = None, tag: str | None = None, permissions: int = 0
    ) -> None:
        self.struct = ffi.new("ringbuf_options *")
        lib.ringbuf_options_init(self.struct)
        self.struct.permissions = 0 if permissions == 0o600 else permissions  # 0: 0600, and nobody else's file is opened
        self._kept: list[Any] = []  # what the struct points to must outlive it
        for field, text in (("directory", directory), ("label", label), ("tag", tag)):
            if text is not None:
                value = ffi.new("char[]", os.fsencode(text))
                self._kept.append(value)
                setattr(self.struct, field, value)


def create(
    name: str | None,
    *,
    mode: str,
    maxsize: int,
    capacity: int,
    auto_cleanup: bool,
    persistent: bool,
    permissions: int,
    label: str | None,
    tag: str,
) -> Any:
    options = _Options(label=label, tag=tag, permissions=permissions)
    options.struct.mode = _MODES[mode]
    options.struct.max_items = maxsize
    options.struct.capacity_bytes = capacity
    options.struct.flags = (lib.RINGBUF_AUTO_CLEANUP if auto_cleanup else 0) | (lib.RINGBUF_PERSISTENT if persistent else 0)
    out = ffi.new("ringbuf **")
    status = lib.ringbuf_create(out, ffi.NULL if name is None else name.encode(), options.struct)
    return _adopt(status, out, name=name, needed=capacity)


def open_by_name(name: str, *, permissions: int = 0, label: str | None = None, directory: str | None = None) -> Any:
    options = _Options(label=label, directory=directory, permissions=permissions)
    out = ffi.new("ringbuf **")
    status = lib.ringbuf_open(out, name.encode(), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def attach(name: str, id: str, *, permissions: int, directory: str) -> Any:
    options = _Options(directory=directory, permissions=permissions)
    out = ffi.new("ringbuf **")
    status = lib.ringbuf_attach(out, name.encode(), bytes.fromhex(id), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def _adopt(status: int, out: Any, *, name: str | None, directory: str | None = None, needed: int = 0) -> Any:
    if status:
        raise error_of(status, name=name, directory=directory, needed=needed)
    handle = ffi.gc(out[0], lib.ringbuf_free)
    _handles.add(handle)
    _close_when_a_child_exits()
    return handle


close = lib.ringbuf_close  # (handle); idempotent, wakes the calls that are blocked on it and waits for them


def unlink(handle: Any) -> None:
    check(lib.ringbuf_unlink(handle), name=name_of(handle))


def unlink_name(name: str, *, directory: str | None = None) -> bool:
    """Whether there was one to remove."""
    options = _Options(directory=directory)
    status = lib.ringbuf_unlink_name(name.encode(), options.struct)
    if status == lib.RINGBUF_E_NOT_FOUND:
        return False
    check(status, name=name, directory=directory)
    return True


def default_directory() -> str:
    return os.environ.get("SAGE_QUEUE_DIR") or "/dev/shm"


def names_in(directory: str) -> list[tuple[str, str | None]]:
    """Every queue's file in the directory, with the queue's name (None where a long name was cut short)."""
    from urllib.parse import unquote  # here: few need it, and it is slow to import

    found: list[tuple[str, str | None]] = []
    try:
        files = sorted(os.listdir(directory))
    except OSError:
        raise error_of(lib.RINGBUF_E_NO_DIRECTORY, directory=directory) from None
    for file in files:
        if file.startswith(_FILE_PREFIX):
            escaped = file[len(_FILE_PREFIX) :]
            found.append((file, None if "~" in escaped else unquote(escaped, errors="replace")))
    return found


def collect(*, directory: str | None = None) -> int:
    removed = ffi.new("uint64_t *")
    check(lib.ringbuf_collect(removed, _Options(directory=directory).struct), directory=directory)
    return int(removed[0])


# ---- children of multiprocessing leave by os._exit(), which runs no destructor ----

_handles: weakref.WeakSet[Any] = weakref.WeakSet()
_hooked = False


def _close_when_a_child_exits() -> None:
    """Have a child's handles closed at its end.

    Without this, the kernel tells the others that it is gone, and they clean up after it; but nobody may be left to do so, and
    then an auto-cleanup queue would stay.  Importing multiprocessing is left to those who use it.
    """
    global _hooked
    util = sys.modules.get("multiprocessing.util")
    if util is None or _hooked:
        return
    _hooked = True

    def hook(_: Any = None) -> None:
        util.Finalize(None, _close_all_in_a_child, exitpriority=-100)  # after multiprocessing's own, which may still use queues

    util.register_after_fork(_close_all_in_a_child, hook)  # a child throws its finalizers away when it starts, then calls this
    hook()


def _close_all_in_a_child() -> None:
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        for handle in list(_handles):
            close(handle)


os.register_at_fork(after_in_child=_close_when_a_child_exits)


# ---- looking in ----


def name_of(handle: Any) -> str:
    return bytes(ffi.string(lib.ringbuf_name(handle))).decode()


def path_of(handle: Any) -> str:
    return os.fsdecode(ffi.string(lib.ringbuf_path(handle)))


class Info:
    """ringbuf_info in Python's types."""

    def __init__(self, handle: Any) -> None:
        info = ffi.new("ringbuf_info *")
        check(lib.ringbuf_get_info(handle, info))
        self.id = bytes(info.id).hex()
        self.capacity = int(info.capacity_bytes)
        self.maxsize = int(info.max_items)
        self.max_message = int(info.max_message_bytes)
        self.file_bytes = int(info.file_bytes)
        self.permissions = int(info.permissions)
        self.creator_pid = int(info.creator_pid)
        self.auto_cleanup = bool(info.flags & lib.RINGBUF_AUTO_CLEANUP)
        self.persistent = bool(info.flags & lib.RINGBUF_PERSISTENT)
        self.unnamed = bool(info.flags & lib.RINGBUF_UNNAMED)
        self.tag = bytes(ffi.string(info.tag)).decode(errors="replace")


def size(handle: Any) -> int:
    items = ffi.new("uint64_t *")
    check(lib.ringbuf_size(handle, items))
    return int(items[0])


def has_room(handle: Any, size: int) -> bool:
    room = ffi.new("int *")
    check(lib.ringbuf_has_room(handle, room, size))
    return bool(room[0])


def stats(handle: Any) -> dict[str, int]:
    values = ffi.new("ringbuf_stats *")
    check(lib.ringbuf_get_stats(handle, values))
    return {field: int(getattr(values, field)) for field, _ in ffi.typeof("ringbuf_stats").fields}


def peers(handle: Any) -> list[dict[str, Any]]:
    count = ffi.new("size_t *")
    room = 16
    while True:
        found = ffi.new("ringbuf_peer[]", room)
        check(lib.ringbuf_get_peers(handle, count, found, room))
        if count[0] <= room:
            break
        room = count[0] * 2
    return [
        {
            "number": int(peer.number),
            "pid": int(peer.pid),
            "label": bytes(ffi.string(peer.label)).decode(errors="replace"),
            "attached_ns": int(peer.attached_ns),
            "puts": int(peer.puts),
            "gets": int(peer.gets),
        }
        for peer in found[0 : count[0]]
    ]


def shut_down(handle: Any, immediate: bool) -> None:
    check(lib.ringbuf_shutdown(handle, 1 if immediate else 0))


# ---- from status to exception: the only door ----


def check(status: int, *, name: str | None = None, directory: str | None = None) -> None:
    if status:
        raise error_of(status, name=name, directory=directory)


def error_of(
    status: int,
    *,
    name: str | None = None,
    directory: str | None = None,
    needed: int = 0,
    limit: int = 0,
) -> Exception:
    """The exception for a status that is neither 0 nor one of those the caller acts on."""
    make = _MAKERS.get(status)
    if make is None:
        error: Exception = errors.SageQueueError(_text(status))
    else:
        directory = directory or default_directory()
        error = make(status, "a queue without a name" if name is None else f"queue {name!r}", directory, needed, limit)
    if isinstance(error, errors.SageQueueError):
        error.code = status
    return error


def _text(status: int) -> str:
    return bytes(ffi.string(lib.ringbuf_status_text(status))).decode()


def _free_bytes(directory: str) -> str:
    try:
        facts = os.statvfs(directory)
    except OSError:
        return "an unknown number of bytes"
    return human_bytes(facts.f_bavail * facts.f_frsize)


def _no_space(status: int, what: str, directory: str, needed: int, limit: int) -> Exception:
    wanted = f"{human_bytes(needed)} " if needed else ""
    return errors.QueueNoSpace(
        errno.ENOSPC,
        f"no room left in {directory} for the {wanted}that {what} needs: {_free_bytes(directory)} are free; make room there, give a "
        "smaller capacity, or name a larger directory in SAGE_QUEUE_DIR",
    )


# Each gets (status, which queue, directory, bytes needed, largest message).
_MAKERS: dict[int, Any] = {
    lib.RINGBUF_E_SHUTDOWN: lambda s, what, d, n, m: errors.ShutDown("Queue is shut down"),
    lib.RINGBUF_E_CLOSED: lambda s, what, d, n, m: errors.QueueClosed("Queue is closed"),
    lib.RINGBUF_E_TOO_LARGE: lambda s, what, d, n, m: errors.MessageTooLarge(
        f"the message is {n} bytes, and the largest that {what} can ever hold is {m} bytes; create it with a larger capacity"
    ),
    lib.RINGBUF_E_INVALID: lambda s, what, d, n, m: errors.QueueInvalid(f"{what}: {_text(s)}"),
    lib.RINGBUF_E_NOT_FOUND: lambda s, what, d, n, m: errors.QueueNotFound(
        errno.ENOENT, f'there is no {what} in {d}; create it first, or open it with mode="open_or_create"'
    ),
    lib.RINGBUF_E_GONE: lambda s, what, d, n, m: errors.QueueNotFound(
        errno.ENOENT, f"{what} is gone, and another one in {d} has its name now; get a new reference"
    ),
    lib.RINGBUF_E_EXISTS: lambda s, what, d, n, m: errors.QueueExists(
        errno.EEXIST, f'{what} exists in {d} already; take another name, or mode="open_or_create"'
    ),
    lib.RINGBUF_E_ACCESS: lambda s, what, d, n, m: errors.QueueAccessDenied(
        errno.EACCES,
        f"{what} in {d} is not ours to use: permission denied, or its file belongs to another user (or is no plain file); let its "
        "owner create it with permissions=0o660 and open it with the same, or take another name",
    ),
    lib.RINGBUF_E_CORRUPT: lambda s, what, d, n, m: errors.QueueCorrupt(
        f"{what} in {d}: the file is not a queue, or something wrote over it; remove it with destroy_queue() or `sage-queue rm`"
    ),
    lib.RINGBUF_E_VERSION: lambda s, what, d, n, m: errors.QueueVersionError(
        f"{what} in {d} was made by another version of this library, or on a machine with another byte order; this one reads layout "
        f"{lib.ringbuf_layout_version()}.  Use the same version everywhere, or remove it with destroy_queue()"
    ),
    lib.RINGBUF_E_NO_SPACE: _no_space,
    lib.RINGBUF_E_NO_MEMORY: lambda s, what, d, n, m: errors.QueueNoMemory(
        f"no memory or address space left in this process for {what}; give a smaller capacity or close other queues"
    ),
    lib.RINGBUF_E_BUSY: lambda s, what, d, n, m: errors.QueueBusy(
        f"{what} in {d} is in use, and this needs it alone; try again when the others have closed it"
    ),
    lib.RINGBUF_E_CROWDED: lambda s, what, d, n, m: errors.QueueCrowded(
        f"as many processes are attached to {what} as it was made for; close it in some of them"
    ),
    lib.RINGBUF_E_NO_FILES: lambda s, what, d, n, m: errors.QueueNoFiles(
        errno.EMFILE, f"out of file descriptors for {what}; close some, or raise the limit (ulimit -n)"
    ),
    lib.RINGBUF_E_NO_DIRECTORY: lambda s, what, d, n, m: errors.QueueNoDirectory(
        errno.ENOTDIR, f"{d} is no directory that can hold {what}; name one on a tmpfs in SAGE_QUEUE_DIR, or unset it for /dev/shm"
    ),
    lib.RINGBUF_E_SYSTEM: lambda s, what, d, n, m: errors.QueueSystemError(
        errno.EIO, f"the operating system refused an operation on {what} in {d}"
    ),
}
