"""Floor 1: the only file that knows the C library.

Owns: `ffi` and `lib`; how a status becomes an exception; the memory that C calls need; how long a handle lives, also in the
children of `multiprocessing`, which leave without the C library's destructor.  Refuses to know: what a message means.

The hot path does not go through cffi but through `Port` (port.c), for cffi's calls cost more than the queue itself.
`error_of` explains any status that is not 0.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from . import _errors as errors, _ringbuf
from ._address import human_bytes
from ._ringbuf import ffi, lib
from ._surroundings import LARGER

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._codec import Codec

_failed = lib.sage_install_port()
if _failed < 0:
    raise ImportError("sage_queue._ringbuf is damaged: its Port cannot be made; install the package again")
if _failed or not hasattr(_ringbuf, "Port"):
    raise ImportError("sage_queue cannot be used in a subinterpreter; import it in the main one, and use processes or threads")


Port = _ringbuf.Port
Taken = _ringbuf.Taken
Block = _ringbuf.Block


def new_port(
    handle: Any,
    codec: Codec,
    refuse: Callable[[int, bool, bool, int], None],
    failed: Callable[[Exception, bool], Exception | None],
    bury: Callable[[bytes, int], None],
    max_attempts: int,
    views: bool = False,
    writable: bool = False,
) -> Port:
    """Where messages go through: `port[deadline] = item` puts, `port[deadline]` gets; deadline None: for ever.

    `refuse(status, is_put, polling, size)` raises what a status means.  `failed(error, is_put)` gives the exception to raise when
    an item cannot be encoded, or a message not be decoded; None: the error stands as it is, and the message goes back.
    `bury(message, attempts)` moves away what was taken more than `max_attempts` times (0: never).
    With `views` the items got look at the queue's memory, and with `writable` they may write there.
    """
    address = int(ffi.cast("uintptr_t", handle))
    how = (codec.framed, codec.dumps, codec.with_torch, codec.loads)
    return Port(handle, address, *how, refuse, failed, bury, max_attempts, views, writable)


join = lib.ringbuf_join  # (handle, deadline) -> status
task_done = lib.ringbuf_task_done  # (handle) -> status

pass_on = lib.ringbuf_pass_on  # (handle) -> status

ROOM: int = lib.RINGBUF_ROOM
DONE: int = lib.RINGBUF_DONE

INVALID: int = lib.RINGBUF_E_INVALID
INTERRUPTED: int = lib.RINGBUF_E_INTR
TIMEOUT: int = lib.RINGBUF_E_TIMEOUT
ARENA_FULL: int = lib.RINGBUF_E_ARENA_FULL
TOO_MANY: int = lib.RINGBUF_E_TOO_MANY

VERSION: str = ffi.string(lib.ringbuf_version()).decode()
FOREVER = (1 << 63) - 1


# ---- a queue's file that somebody truncates ----

_guarded = False


def _guard_truncation() -> None:
    """Have calls on a queue whose file was truncated fail, and SIGBUS not end the process.  Before the first queue is mapped.

    That is a handler for SIGBUS.  Not with SAGE_QUEUE_SIGBUS_GUARD=0 in the environment, as it is when the first queue is made.
    """
    global _guarded
    if not _guarded and os.environ.get("SAGE_QUEUE_SIGBUS_GUARD") != "0":
        check(lib.ringbuf_guard_truncation())
    _guarded = True


# ---- making, finding and leaving queues ----

_FILE_PREFIX = "ringbuf."
_HEADER_BYTES = 8192
_PARTICIPANT_BYTES = 128
_MAGIC = (0x31664275426E6952).to_bytes(8, sys.byteorder)
#: options.arena_bytes: 64 MiB, or a quarter of what the file system can hold if that is less.
ARENA_DEFAULT = (1 << 64) - 1

_MODES = {"open_or_create": lib.RINGBUF_OPEN_OR_CREATE, "create": lib.RINGBUF_CREATE, "fresh": lib.RINGBUF_FRESH}


class _Options:
    """A ringbuf_options with what it points to."""

    def __init__(
        self,
        *,
        directory: str | None = None,
        label: str | None = None,
        tag: str | None = None,
        note: str | None = None,
        permissions: int = 0,
    ) -> None:
        self.struct = ffi.new("ringbuf_options *")
        lib.ringbuf_options_init(self.struct)
        self.struct.permissions = 0 if permissions == 0o600 else permissions  # 0: 0600, and nobody else's file is opened
        self._kept: list[Any] = []  # what the struct points to must outlive it
        for field, text in (("directory", directory), ("label", label), ("tag", tag), ("note", note)):
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
    arena: int,
    auto_cleanup: bool,
    persistent: bool,
    permissions: int,
    label: str | None,
    tag: str,
    note: str,
    directory: str | None = None,
) -> Any:
    options = _Options(label=label, tag=tag, note=note, permissions=permissions, directory=directory)
    options.struct.mode = _MODES[mode]
    options.struct.max_items = maxsize
    options.struct.capacity_bytes = capacity
    options.struct.arena_bytes = arena
    options.struct.flags = (lib.RINGBUF_AUTO_CLEANUP if auto_cleanup else 0) | (lib.RINGBUF_PERSISTENT if persistent else 0)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_create(out, ffi.NULL if name is None else name.encode(), options.struct)
    return _adopt(status, out, name=name, directory=directory, needed=_at_once())


def _at_once() -> int:
    """The bytes that a queue needs when it is made: whole pages for its header and the first participant.  The others come as messages do."""
    page = os.sysconf("SC_PAGE_SIZE")
    return -(-(_HEADER_BYTES + _PARTICIPANT_BYTES) // page) * page


def open_by_name(name: str, *, permissions: int = 0, label: str | None = None, directory: str | None = None) -> Any:
    options = _Options(label=label, directory=directory, permissions=permissions)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_open(out, name.encode(), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def attach(name: str, id: str, *, permissions: int, directory: str) -> Any:
    options = _Options(directory=directory, permissions=permissions)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_attach(out, name.encode(), bytes.fromhex(id), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def _adopt(status: int, out: Any, *, name: str | None, directory: str | None = None, needed: int = 0) -> Any:
    if status:
        raise error_of(status, name=name, directory=directory, needed=needed)
    _close_when_a_child_exits()
    return ffi.gc(out[0], lib.ringbuf_free)


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


def deleted_in(directory: str) -> list[tuple[str, list[int]]]:
    """Queues of the directory whose file was deleted by others while processes use them: the names, and the pids of those processes.

    As far as /proc lets us look into processes: root sees all, others their own.  (One that is just being made looks the same.)
    """
    there = os.path.realpath(directory)
    users: dict[tuple[int, str], set[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:  # gone, or not ours to look into
            continue
        for descriptor in descriptors:
            path = f"/proc/{pid}/fd/{descriptor}"
            try:
                if os.path.dirname(os.readlink(path)) != there:
                    continue
                facts = os.stat(path)
                if facts.st_nlink or not stat.S_ISREG(facts.st_mode):
                    continue
                with open(path, "rb", buffering=0) as file:
                    name = _name_if_deleted(file.read(_HEADER_BYTES))
            except OSError:
                continue
            if name is not None:
                users.setdefault((facts.st_ino, name), set()).add(int(pid))
    return [(name, sorted(pids)) for (_, name), pids in sorted(users.items(), key=lambda each: each[0][1])]


def _name_if_deleted(header: bytes) -> str | None:
    """The name in the header of a file without a name, unless that is no queue or this library has removed it; see docs/layout.md."""
    if len(header) < _HEADER_BYTES or header[:8] != _MAGIC or int.from_bytes(header[8:12], sys.byteorder) != lib.ringbuf_layout_version():
        return None
    if int.from_bytes(header[2588:2592], sys.byteorder):
        return None
    size = min(int.from_bytes(header[680:688], sys.byteorder), 1024)
    return header[688 : 688 + size].decode(errors="replace")


def collect(*, directory: str | None = None) -> int:
    removed = ffi.new("uint64_t *")
    _guard_truncation()
    check(lib.ringbuf_collect(removed, _Options(directory=directory).struct), directory=directory)
    return int(removed[0])


# ---- children of multiprocessing leave by os._exit(), which runs no destructor ----

_hooked = False


def _close_when_a_child_exits() -> None:
    """Have a child's handles closed at its end, also those whose messages are still looked at.

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
        lib.ringbuf_leave_all()


os.register_at_fork(after_in_child=_close_when_a_child_exits)


# ---- descriptors ----


def items_fd(handle: Any, name: str) -> int:
    """Readable while a get would not wait."""
    fd = ffi.new("int *")
    check(lib.ringbuf_items_fd(handle, fd), name=name, handle=handle)
    return int(fd[0])


def changes_fd(handle: Any, change: int, name: str) -> int:
    """Readable once this change (ROOM or DONE) has happened after this call."""
    fd = ffi.new("int *")
    check(lib.ringbuf_changes_fd(handle, change, fd), name=name, handle=handle)
    return int(fd[0])


def is_joined(handle: Any, name: str) -> bool:
    """Whether every item that was put has been got and marked as done."""
    status = join(handle, 0)
    if status not in (0, TIMEOUT, INTERRUPTED):
        raise error_of(status, name=name, handle=handle)
    return bool(status == 0)


def recover(handle: Any, name: str) -> int:
    """Clean up after the dead, and see to it that the descriptors tell the truth.  How many there were."""
    recovered = ffi.new("uint64_t *")
    check(lib.ringbuf_recover(handle, recovered), name=name, handle=handle)
    if lib.ringbuf_deletion_is_news(handle):  # calls that wait by themselves see to it in port.c
        warn_of_deletion(name, bytes(ffi.string(lib.ringbuf_path(handle))))
    return int(recovered[0])


def warn_of_deletion(name: str, path: bytes) -> None:
    """Once for each handle, when its queue's file was deleted by others."""
    import warnings  # here: few need it

    warnings.warn(
        f"the file of queue {name!r}, {os.fsdecode(path)}, was deleted while the queue is in use: those who are attached go on, but "
        "whoever opens the name now gets another queue, or none; close it everywhere, then open it again (systemd deletes a user's "
        "files in /dev/shm when he logs out, unless logind.conf says RemoveIPC=no)",
        RuntimeWarning,
        stacklevel=3,
    )


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
        self.arena = int(info.arena_bytes)
        self.max_message = int(info.max_message_bytes)
        self.file_bytes = int(info.file_bytes)
        self.permissions = int(info.permissions)
        self.creator_pid = int(info.creator_pid)
        self.auto_cleanup = bool(info.flags & lib.RINGBUF_AUTO_CLEANUP)
        self.persistent = bool(info.flags & lib.RINGBUF_PERSISTENT)
        self.unnamed = bool(info.flags & lib.RINGBUF_UNNAMED)
        self.tag = bytes(ffi.string(info.tag)).decode(errors="replace")
        self.note = bytes(ffi.string(info.note)).decode(errors="replace")


def put_bytes(handle: Any, message: bytes) -> int:
    """The status of putting this message as it is, whatever the queue's serializer.  Does not wait."""
    return int(lib.ringbuf_put(handle, message, len(message), 0))


def size(handle: Any) -> int:
    items = ffi.new("uint64_t *")
    check(lib.ringbuf_size(handle, items), handle=handle)
    return int(items[0])


def has_room(handle: Any, size: int) -> bool:
    room = ffi.new("int *")
    check(lib.ringbuf_has_room(handle, room, size), handle=handle)
    return bool(room[0])


def stats(handle: Any) -> dict[str, int]:
    values = ffi.new("ringbuf_stats *")
    check(lib.ringbuf_get_stats(handle, values), handle=handle)
    return {field: int(getattr(values, field)) for field, _ in ffi.typeof("ringbuf_stats").fields}


def check_arena(handle: Any) -> dict[str, int]:
    """ringbuf_check: what is in the arena, and what is wrong with it.  (What others are doing meanwhile can look wrong.)"""
    findings = ffi.new("ringbuf_findings *")
    check(lib.ringbuf_check(handle, findings), handle=handle)
    return {field: int(getattr(findings, field)) for field, _ in ffi.typeof("ringbuf_findings").fields}


def peers(handle: Any) -> list[dict[str, Any]]:
    count = ffi.new("size_t *")
    room = 16
    while True:
        found = ffi.new("ringbuf_peer[]", room)
        check(lib.ringbuf_get_peers(handle, count, found, room), handle=handle)
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
    check(lib.ringbuf_shutdown(handle, 1 if immediate else 0), handle=handle)


# ---- from status to exception: the only door ----


def check(status: int, *, name: str | None = None, directory: str | None = None, handle: Any = None) -> None:
    if status:
        raise error_of(status, name=name, directory=directory, handle=handle)


def error_of(
    status: int,
    *,
    name: str | None = None,
    directory: str | None = None,
    needed: int = 0,
    info: Info | None = None,
    handle: Any = None,
) -> Exception:
    """The exception for a status that is neither 0 nor one of those the caller acts on."""
    make = _MAKERS.get(status)
    if status == lib.RINGBUF_E_CORRUPT and handle is not None and _is_truncated(handle):
        error: Exception = errors.QueueCorrupt(
            f"the file of queue {name_of(handle)!r}, {path_of(handle)}, was truncated while it was in use, and what was in it is "
            "lost; close the queue, remove it with destroy_queue() or `sage-queue rm`, and create it anew"
        )
    elif make is None:
        error = errors.SageQueueError(_text(status))
    else:
        directory = directory or default_directory()
        error = make(status, "a queue without a name" if name is None else f"queue {name!r}", directory, needed, info)
    if isinstance(error, errors.SageQueueError):
        error.code = status
    return error


def _text(status: int) -> str:
    return bytes(ffi.string(lib.ringbuf_status_text(status))).decode()


def _is_truncated(handle: Any) -> bool:
    info = ffi.new("ringbuf_info *")
    check(lib.ringbuf_get_info(handle, info))
    return bool(info.truncated)


def _too_large(status: int, what: str, directory: str, needed: int, info: Info) -> Exception:
    remedy = "a larger arena" if info.arena else "an arena, or a larger capacity"
    return errors.MessageTooLarge(
        f"the message is {needed} bytes, and the largest that {what} can ever hold is {info.max_message} bytes; create it with {remedy}"
    )


def _no_space(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    wanted = f"the {human_bytes(needed)} that {what} needs" if needed else f"what {what} needs"
    if info is None:
        wanted += " at once"
    return errors.QueueNoSpace(
        errno.ENOSPC,
        f"no room left in {directory} for {wanted}: {_free_bytes(directory)}; remove what dead processes have left there (`sage-queue gc`), "
        f"make it larger ({LARGER}), give a smaller capacity or arena, or name a larger directory in SAGE_QUEUE_DIR{_file_limit()}",
    )


def _free_bytes(directory: str) -> str:
    try:
        facts = os.statvfs(directory)
    except OSError:
        return "how many bytes are free is not known"
    free = f"{human_bytes(facts.f_bavail * facts.f_frsize)} of {human_bytes(facts.f_blocks * facts.f_frsize)} are free"
    if facts.f_files and not facts.f_favail:
        return f"all of the {facts.f_files} files that it may have are there (nr_inodes of its mount), {free}"
    return free


def _file_limit() -> str:
    import resource  # here: few need it

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"; or raise this process's limit on the size of files (ulimit -f), which is {human_bytes(limit)}, and counts unused pages, too"


def _access_denied(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    if os.path.isdir(directory) and not os.access(directory, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        return errors.QueueAccessDenied(
            errno.EACCES,
            f"{what} cannot be used: {directory} is read-only (mounted so), or not this user's to write to; name another directory in "
            "SAGE_QUEUE_DIR, or have this one opened",
        )
    return errors.QueueAccessDenied(
        errno.EACCES,
        f"{what} in {directory} is not ours to use: permission denied, or its file belongs to another user (or is no plain file); let "
        "its owner create it with permissions=0o660 and open it with the same, or take another name",
    )


# Each gets (status, which queue, directory, bytes needed, what is fixed about the queue).
_MAKERS: dict[int, Any] = {
    lib.RINGBUF_E_SHUTDOWN: lambda s, what, d, n, i: errors.ShutDown("Queue is shut down"),
    lib.RINGBUF_E_CLOSED: lambda s, what, d, n, i: errors.QueueClosed("Queue is closed"),
    lib.RINGBUF_E_TOO_LARGE: _too_large,
    lib.RINGBUF_E_INVALID: lambda s, what, d, n, i: errors.QueueInvalid(f"{what}: {_text(s)}"),
    lib.RINGBUF_E_NOT_FOUND: lambda s, what, d, n, i: errors.QueueNotFound(
        errno.ENOENT, f'there is no {what} in {d}; create it first, or open it with mode="open_or_create"'
    ),
    lib.RINGBUF_E_GONE: lambda s, what, d, n, i: errors.QueueNotFound(
        errno.ENOENT, f"{what} is gone, and another one in {d} has its name now; get a new reference"
    ),
    lib.RINGBUF_E_EXISTS: lambda s, what, d, n, i: errors.QueueExists(
        errno.EEXIST, f'{what} exists in {d} already; take another name, or mode="open_or_create"'
    ),
    lib.RINGBUF_E_ACCESS: _access_denied,
    lib.RINGBUF_E_CORRUPT: lambda s, what, d, n, i: errors.QueueCorrupt(
        f"{what} in {d}: the file is not a queue, or something wrote over it or truncated it; remove it with destroy_queue() or "
        "`sage-queue rm`"
    ),
    lib.RINGBUF_E_VERSION: lambda s, what, d, n, i: errors.QueueVersionError(
        f"{what} in {d} was made by another version of this library, or on a machine with another byte order; this one reads layout "
        f"{lib.ringbuf_layout_version()}.  Use the same version everywhere, or remove it with destroy_queue()"
    ),
    lib.RINGBUF_E_NO_SPACE: _no_space,
    lib.RINGBUF_E_NO_MEMORY: lambda s, what, d, n, i: errors.QueueNoMemory(
        f"no memory or address space left in this process for {what}; give a smaller capacity or arena, or close other queues"
    ),
    lib.RINGBUF_E_BUSY: lambda s, what, d, n, i: errors.QueueBusy(
        f"{what} in {d} is in use, and this needs it alone; try again when the others have closed it"
    ),
    lib.RINGBUF_E_CROWDED: lambda s, what, d, n, i: errors.QueueCrowded(
        f"as many processes are attached to {what} as it was made for; close it in some of them"
    ),
    lib.RINGBUF_E_NO_FILES: lambda s, what, d, n, i: errors.QueueNoFiles(
        errno.EMFILE, f"out of file descriptors for {what}; close some, or raise the limit (ulimit -n)"
    ),
    lib.RINGBUF_E_NO_DIRECTORY: lambda s, what, d, n, i: errors.QueueNoDirectory(
        errno.ENOTDIR, f"{d} is no directory that can hold {what}; name one on a tmpfs in SAGE_QUEUE_DIR, or unset it for /dev/shm"
    ),
    lib.RINGBUF_E_SYSTEM: lambda s, what, d, n, i: errors.QueueSystemError(
        errno.EIO, f"the operating system refused an operation on {what} in {d}"
    ),
}
