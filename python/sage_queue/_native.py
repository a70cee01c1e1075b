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
from ._address import PARTICIPANTS_MAX, human_bytes, login_name, safe
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
now_ns: Callable[[], int] = _ringbuf.now_ns  # the clock of all deadlines, which no library for tests replaces


def new_port(
    handle: Any,
    codec: Codec,
    refuse: Callable[[int, bool, bool, int], None],
    failed: Callable[[Exception, bool], Exception | None],
    views: bool = False,
    writable: bool = False,
) -> Port:
    """Where messages go through: `port[deadline] = item` puts, `port[deadline]` gets; deadline None: for ever.

    `refuse(status, is_put, polling, size)` raises what a status means.  `failed(error, is_put)` gives the exception to raise when
    an item cannot be encoded, or a message not be decoded; None: the error stands as it is, and the message goes back.
    With `views` the items got look at the queue's memory, and with `writable` they may write there.
    """
    address = int(ffi.cast("uintptr_t", handle))
    how = (codec.framed, codec.dumps, codec.with_torch, codec.loads)
    return Port(handle, address, *how, refuse, failed, views, writable)


join = lib.ringbuf_join  # (handle, deadline) -> status
task_done = lib.ringbuf_task_done  # (handle) -> status

pass_on = lib.ringbuf_pass_on  # (handle) -> status

ROOM: int = lib.RINGBUF_ROOM
DONE: int = lib.RINGBUF_DONE

INVALID: int = lib.RINGBUF_E_INVALID
INTERRUPTED: int = lib.RINGBUF_E_INTR
TIMEOUT: int = lib.RINGBUF_E_TIMEOUT
ARENA_FULL: int = lib.RINGBUF_E_ARENA_FULL
DEAD_LETTER: int = lib.RINGBUF_E_DEAD_LETTER
TOO_MANY: int = lib.RINGBUF_E_TOO_MANY

LAYOUT: int = lib.ringbuf_layout_version()
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
#: options.arena_bytes: 64 MiB, or a quarter of what the file system can hold if that is less.
ARENA_DEFAULT = (1 << 64) - 1

#: options.memory, by the keyword of SageQueue.
MEMORY = {
    "prefault": int(lib.RINGBUF_PREFAULT),
    "huge_pages": int(lib.RINGBUF_HUGE_PAGES),
    "lock_memory": int(lib.RINGBUF_LOCK_MEMORY),
    "dump": int(lib.RINGBUF_DUMP),
}

_MODES = {"open_or_create": lib.RINGBUF_OPEN_OR_CREATE, "create": lib.RINGBUF_CREATE, "fresh": lib.RINGBUF_FRESH}


def _bytes_of(name: str) -> bytes:
    """A name as the C library has it.  (One that is no UTF-8, as C programs can give, comes as os.fsdecode() has it.)"""
    return name.encode("utf-8", "surrogateescape")


def _text_of(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class _Options:
    """A ringbuf_options with what it points to."""

    def __init__(
        self,
        *,
        directory: str | None = None,
        label: str | None = None,
        tag: str | None = None,
        note: str | None = None,
        dead_letter: str | None = None,
        permissions: int = 0,
        memory: int = 0,
    ) -> None:
        self.struct = ffi.new("ringbuf_options *")
        lib.ringbuf_options_init(self.struct)
        self.struct.permissions = 0 if permissions == 0o600 else permissions  # 0: 0600, and nobody else's file is opened
        self.struct.memory = memory
        self._kept: list[Any] = []  # what the struct points to must outlive it
        for field, text in (("directory", directory), ("label", label), ("tag", tag), ("note", note), ("dead_letter", dead_letter)):
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
    note: str = "",
    max_attempts: int = 0,
    dead_letter: str | None = None,
    max_participants: int | None = None,
    directory: str | None = None,
    keep_warm: bool = False,
    memory: int = 0,
) -> Any:
    options = _Options(
        label=label, tag=tag, note=note, dead_letter=dead_letter, permissions=permissions, directory=directory, memory=memory
    )
    options.struct.max_attempts = max_attempts
    options.struct.mode = _MODES[mode]
    options.struct.max_items = maxsize
    options.struct.capacity_bytes = capacity
    options.struct.arena_bytes = arena
    if max_participants is not None:
        options.struct.max_participants = max_participants
    wishes = ((auto_cleanup, lib.RINGBUF_AUTO_CLEANUP), (persistent, lib.RINGBUF_PERSISTENT), (keep_warm, lib.RINGBUF_KEEP_WARM))
    options.struct.flags = sum(flag for wished, flag in wishes if wished)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_create(out, ffi.NULL if name is None else _bytes_of(name), options.struct)
    return _adopt(status, out, name=name, directory=directory, needed=_at_once())


def _at_once() -> int:
    """The bytes that a queue needs when it is made: whole pages for its header and the first participant.  The others come as messages do."""
    page = os.sysconf("SC_PAGE_SIZE")
    return -(-(_HEADER_BYTES + _PARTICIPANT_BYTES) // page) * page


def open_by_name(
    name: str, *, permissions: int = 0, label: str | None = None, directory: str | None = None, memory: int = 0
) -> Any:
    options = _Options(label=label, directory=directory, permissions=permissions, memory=memory)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_open(out, _bytes_of(name), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def attach(name: str, id: str, *, permissions: int, directory: str) -> Any:
    options = _Options(directory=directory, permissions=permissions)
    out = ffi.new("ringbuf **")
    _guard_truncation()
    status = lib.ringbuf_attach(out, _bytes_of(name), bytes.fromhex(id), options.struct)
    return _adopt(status, out, name=name, directory=directory)


def _adopt(status: int, out: Any, *, name: str | None, directory: str | None = None, needed: int = 0) -> Any:
    if status:
        raise error_of(status, name=name, directory=directory, needed=needed)
    _close_when_a_child_exits()
    return ffi.gc(out[0], lib.ringbuf_free)


close = lib.ringbuf_close  # (handle); idempotent, wakes the calls that are blocked on it and waits for them


def unlink(handle: Any) -> None:
    check(lib.ringbuf_unlink(handle), name=name_of(handle))


def unlink_name(name: str, *, permissions: int = 0, directory: str | None = None) -> bool:
    """Whether there was one to remove.  With any permissions, also if it is another user's."""
    options = _Options(directory=directory, permissions=permissions)
    status = lib.ringbuf_unlink_name(_bytes_of(name), options.struct)
    if status == lib.RINGBUF_E_NOT_FOUND:
        return False
    check(status, name=name, directory=directory)
    return True


def default_directory() -> str:
    """Absolute, for references carry it to processes with other working directories."""
    return os.path.abspath(os.environ.get("SAGE_QUEUE_DIR") or "/dev/shm")


def collect(*, permissions: int = 0, directory: str | None = None) -> int:
    """How many were removed.  With any permissions, also other users'."""
    removed = ffi.new("uint64_t *")
    _guard_truncation()
    options = _Options(directory=directory, permissions=permissions)
    status = lib.ringbuf_collect(removed, options.struct)
    if status == lib.RINGBUF_E_NO_DIRECTORY:
        raise _nothing_to_list(directory or default_directory())
    check(status, directory=directory)
    return int(removed[0])


# ---- children of multiprocessing leave by os._exit(), which runs no destructor ----

# multiprocessing has offspring: billiard (Celery), multiprocess (pathos), and copies of them inside other packages.  Each has a module
# `util` of its own, which keeps what is to be done at the end of a child (Finalize) and at its beginning (register_after_fork).  So we
# look for such modules rather than for names.  A child of os.fork() ends as any process, or by os._exit(), where nothing can be done.

_families: set[str] = set()
_modules_seen = 0


def _close_when_a_child_exits() -> None:
    """Have a child's handles closed at its end, also those whose messages are still looked at.

    Without this, the kernel tells the others that it is gone, and they clean up after it; but nobody may be left to do so, and
    then an auto-cleanup queue would stay.  Importing multiprocessing is left to those who use it.
    """
    global _modules_seen
    if len(sys.modules) == _modules_seen:
        return
    _modules_seen = len(sys.modules)
    for name, util in list(sys.modules.items()):
        if name.endswith(".util") and name not in _families and hasattr(util, "register_after_fork") and hasattr(util, "Finalize"):
            _families.add(name)
            _hook(name.removesuffix(".util"), util)


def _hook(family: str, util: Any) -> None:
    def leave() -> None:
        if _is_child(family):
            lib.ringbuf_leave_all()

    def hook(_: Any = None) -> None:
        util.Finalize(None, leave, exitpriority=-100)  # after the family's own, which may still use queues

    util.register_after_fork(leave, hook)  # a child throws its finalizers away when it starts, then calls this
    hook()
    _kept.append(leave)  # it is registered as a weak reference


_kept: list[Any] = []


def _is_child(family: str) -> bool:
    """Whether this process is a child that this family has started, and will end."""
    process = sys.modules.get(family + ".process")
    current = getattr(process, "current_process", None)
    return current is not None and type(current()).__name__ != "_MainProcess"


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


def watch(handle: Any, name: str) -> int:
    """What a call that waits does now and then, for who waits by descriptors; cheap before its time.

    Returns when it wants to be called again, on CLOCK_MONOTONIC in nanoseconds.
    """
    next_ns = ffi.new("int64_t *")
    check(lib.ringbuf_watch(handle, next_ns), name=name, handle=handle)
    if lib.ringbuf_deletion_is_news(handle):
        warn_of_deletion(name, bytes(ffi.string(lib.ringbuf_path(handle))))
    return int(next_ns[0])


def warn_of_deletion(name: str, path: bytes) -> None:
    """Once for each handle, when its queue's file was deleted by others."""
    import warnings  # here: few need it

    warnings.warn(
        f"the file of queue {name!r}, {safe(os.fsdecode(path))}, was deleted while the queue is in use: those who are attached go on, but "
        "whoever opens the name now gets another queue, or none; close it everywhere, then open it again (systemd deletes a user's "
        "files in /dev/shm when he logs out, unless logind.conf says RemoveIPC=no)",
        RuntimeWarning,
        stacklevel=3,
    )


# ---- looking in ----


def name_of(handle: Any) -> str:
    return _text_of(bytes(ffi.string(lib.ringbuf_name(handle))))


def path_of(handle: Any) -> str:
    return os.fsdecode(ffi.string(lib.ringbuf_path(handle)))


class Info:
    """ringbuf_info in Python's types: of a handle, or what was found out without one."""

    def __init__(self, handle: Any, info: Any = None) -> None:
        if info is None:
            info = ffi.new("ringbuf_info *")
            check(lib.ringbuf_get_info(handle, info))
        self.id = bytes(info.id).hex()
        self.capacity = int(info.capacity_bytes)
        self.maxsize = int(info.max_items)
        self.arena = int(info.arena_bytes)
        self.max_message = int(info.max_message_bytes)
        self.file_bytes = int(info.file_bytes)
        self.max_participants = int(info.max_participants)
        self.permissions = int(info.permissions)
        self.creator_pid = int(info.creator_pid)
        self.auto_cleanup = bool(info.flags & lib.RINGBUF_AUTO_CLEANUP)
        self.persistent = bool(info.flags & lib.RINGBUF_PERSISTENT)
        self.unnamed = bool(info.flags & lib.RINGBUF_UNNAMED)
        self.keep_warm = bool(info.flags & lib.RINGBUF_KEEP_WARM)
        self.tag = bytes(ffi.string(info.tag)).decode(errors="replace")
        self.note = bytes(ffi.string(info.note)).decode(errors="replace")
        self.max_attempts = int(info.max_attempts)
        self.dead_letter = bytes(ffi.string(info.dead_letter)).decode(errors="replace") or None


def put_bytes(handle: Any, message: bytes) -> int:
    """The status of putting this message as it is, whatever the queue's serializer.  Does not wait."""
    return int(lib.ringbuf_put(handle, message, len(message), 0))


def dead_letter_status(handle: Any) -> int:
    """Why a call on this handle could last not move a message to the dead-letter queue; INVALID: that has another tag."""
    return int(lib.ringbuf_dead_letter_status(handle))


def size(handle: Any) -> int:
    items = ffi.new("uint64_t *")
    check(lib.ringbuf_size(handle, items), handle=handle)
    return int(items[0])


def may_free_pages(handle: Any) -> bool:
    """Whether something in the queue can still give pages back when it comes to its end."""
    values = stats(handle)
    return bool(values["items"] or values["arena_used_bytes"])


def has_room(handle: Any, size: int) -> bool:
    room = ffi.new("int *")
    check(lib.ringbuf_has_room(handle, room, size), handle=handle)
    return bool(room[0])


def stats(handle: Any) -> dict[str, int]:
    values = ffi.new("ringbuf_stats *")
    check(lib.ringbuf_get_stats(handle, values), handle=handle)
    return _stats_of(values)


def _stats_of(values: Any) -> dict[str, int]:
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


# ---- looking from outside: nothing is attached to, locked, opened that is no plain file, or changed ----

_CONDITIONS = {
    lib.RINGBUF_SOUND: "sound",
    lib.RINGBUF_DAMAGED: "damaged",
    lib.RINGBUF_OTHER_LAYOUT: "other layout",
    lib.RINGBUF_NO_QUEUE: "no queue",
    lib.RINGBUF_NO_FILE: "no file",
    lib.RINGBUF_UNREADABLE: "unreadable",
}
_FILE_TYPES = {
    lib.RINGBUF_FILE: "file",
    lib.RINGBUF_FOLDER: "folder",
    lib.RINGBUF_LINK: "symbolic link",
    lib.RINGBUF_FIFO: "FIFO",
    lib.RINGBUF_SOCKET: "socket",
    lib.RINGBUF_DEVICE: "device",
}


class Observation:
    """ringbuf_observation in Python's types: what lies where a queue's file would be.  Whoever made it may have written anything there."""

    def __init__(self, directory: str, seen: Any, info: Any, stats: Any) -> None:
        self.file = os.fsdecode(ffi.string(seen.file_name))  #: without its directory
        self.path = os.path.join(directory, self.file)
        self.condition = _CONDITIONS[seen.condition]
        self.file_type = _FILE_TYPES[seen.file_type]
        self.uid = int(seen.user)
        self.mode = int(seen.mode)
        self.file_bytes = int(seen.file_bytes)
        self.memory_bytes = int(seen.memory_bytes)
        self.is_attached = bool(seen.presence != lib.RINGBUF_NOBODY)
        self.is_deleted = bool(seen.unlinked == lib.RINGBUF_DELETED)
        self.layout = int(seen.layout_version)
        self.other_byte_order = bool(seen.other_byte_order)
        self.handles, self.dead, self.processes = int(seen.handles), int(seen.dead), int(seen.processes)
        self.info = Info(None, info) if info.max_participants else None
        self.stats = _stats_of(stats) if self.condition == "sound" else None
        #: The name in the queue itself; None if that cannot be read.
        self.own_name = _text_of(ffi.unpack(seen.name, seen.name_bytes)) if seen.name_bytes else None
        self.is_misplaced = bool(seen.misplaced)  #: that name does not lead here
        #: The name that leads here, as far as can be told: of a long one the file name tells only the beginning.
        self.name = self.own_name if self.own_name is not None and not self.is_misplaced else _name_of_file(self.file)

    @property
    def is_usable(self) -> bool:
        """A queue that can be attached to by its name, by those whom its file lets."""
        return self.condition == "sound" and not self.is_misplaced

    def problem(self) -> str | None:
        """In words, if it is not usable; nothing in them needs to be escaped."""
        if self.condition == "sound":
            return f"holds the queue {safe(repr(self.own_name))}, which nobody finds under this file name" if self.is_misplaced else None
        if self.condition == "damaged":
            if self.info is None or self.file_bytes >= self.info.file_bytes:
                return "is damaged: something wrote over it"
            return f"is damaged: it was truncated to {self.file_bytes:,} of {self.info.file_bytes:,} bytes"
        if self.condition == "other layout":
            return _of_another_layout(self.layout, self.other_byte_order)
        if self.condition == "no queue":
            return f"is no queue but {f'a file of {human_bytes(self.file_bytes)}' if self.file_bytes else 'an empty file'}"
        if self.condition == "no file":
            return f"is no queue but a {self.file_type}"
        return f"belongs to {login_name(self.uid)}, and this user may not read it"


def _of_another_layout(layout: int, other_byte_order: bool) -> str:
    order = ", and it was made on a machine with another byte order" if other_byte_order else ""
    return f"was made by another version of this library: it has layout {layout}; this one reads layout {LAYOUT}{order}"


def _name_of_file(file: str) -> str | None:
    from urllib.parse import unquote_to_bytes  # here: few need it, and it is slow to import

    escaped = file[len(_FILE_PREFIX) :]
    return None if "~" in escaped or not escaped else _text_of(unquote_to_bytes(os.fsencode(escaped)))


def _observe(directory: str, look: Callable[[Any, Any, Any], int]) -> Observation | None:
    seen, info, stats = ffi.new("ringbuf_observation *"), ffi.new("ringbuf_info *"), ffi.new("ringbuf_stats *")
    seen.struct_bytes = ffi.sizeof("ringbuf_observation")
    status = look(seen, info, stats)
    if status in (lib.RINGBUF_E_NOT_FOUND, lib.RINGBUF_E_NO_DIRECTORY):
        return None
    check(status, directory=directory)
    return Observation(directory, seen, info, stats)


def observe(name: str, *, directory: str | None = None) -> Observation | None:
    """What lies where the file of the queue of that name would be; None: nothing."""
    options = _Options(directory=directory)
    encoded = _bytes_of(name)
    return _observe(directory or default_directory(), lambda *out: int(lib.ringbuf_observe(*out, encoded, options.struct)))


def observe_file(directory: str, file: str) -> Observation | None:
    path = os.fsencode(os.path.join(directory, file))
    return _observe(directory, lambda *out: int(lib.ringbuf_observe_file(*out, path)))


def observe_all(directory: str) -> list[Observation]:
    """Everything in the directory that is called as queues' files are.  (Others come and go meanwhile.)"""
    try:
        files = sorted(os.listdir(directory))
    except PermissionError:
        raise errors.QueueAccessDenied(errno.EACCES, f"{safe(directory)} cannot be listed by this user: permission denied") from None
    except OSError:
        raise _nothing_to_list(directory) from None
    found = (observe_file(directory, file) for file in files if file.startswith(_FILE_PREFIX))
    return [observation for observation in found if observation is not None]


def _nothing_to_list(directory: str) -> Exception:
    error = errors.QueueNoDirectory(
        errno.ENOTDIR, f"{safe(directory)} is no directory that holds queues; name one in SAGE_QUEUE_DIR, or unset it for /dev/shm"
    )
    error.code = lib.RINGBUF_E_NO_DIRECTORY
    return error


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
                name = _name_if_deleted(directory, path)
            except (OSError, errors.SageQueueError):
                continue
            if name is not None:
                users.setdefault((facts.st_ino, name), set()).add(int(pid))
    return [(name, sorted(pids)) for (_, name), pids in sorted(users.items(), key=lambda each: each[0][1])]


def _name_if_deleted(directory: str, path: str) -> str | None:
    """The name of the queue in a file without a name, unless it is no queue or this library has removed it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        found = _observe(directory, lambda *out: int(lib.ringbuf_observe_fd(*out, fd)))
    finally:
        os.close(fd)
    return found.own_name if found is not None and found.is_deleted else None


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
            f"the file of queue {name_of(handle)!r}, {safe(path_of(handle))}, was truncated while it was in use, and what was in it is "
            "lost; close the queue, remove it with destroy_queue() or `sage-queue rm`, and create it anew"
        )
    elif status == lib.RINGBUF_E_CROWDED:
        error = errors.QueueCrowded(_crowded(name, directory or default_directory(), handle))
    elif make is None:
        error = errors.SageQueueError(_text(status))
    else:
        directory = os.path.abspath(directory or default_directory())
        what = "a queue without a name" if name is None else f"queue {name!r}"
        error = (None if name is None else _obstacle(status, name, directory)) or make(status, what, directory, needed, info)
    if isinstance(error, errors.SageQueueError):
        error.code = status
    return error


def _text(status: int) -> str:
    return bytes(ffi.string(lib.ringbuf_status_text(status))).decode()


def _crowded(name: str | None, directory: str, handle: Any) -> str:
    most = _max_participants_of(name, directory) if handle is None else Info(handle).max_participants
    what = "a queue without a name" if name is None else f"queue {name!r}"
    remedy = f", or create it anew with a larger max_participants (up to {PARTICIPANTS_MAX})" if most != PARTICIPANTS_MAX else ""
    return (
        f"{most or 'as many'} are attached to {what}, and it was made for no more; close it in some processes (each handle counts), share "
        f"one handle in a process{remedy}"
    )


def _max_participants_of(name: str | None, directory: str) -> int:
    """What the queue's file says; 0 if it cannot be found or read by now."""
    try:
        found = None if name is None else observe(name, directory=directory)
    except (errors.SageQueueError, OSError, ValueError):
        return 0
    return found.info.max_participants if found is not None and found.info is not None and not found.is_misplaced else 0


def _is_truncated(handle: Any) -> bool:
    info = ffi.new("ringbuf_info *")
    check(lib.ringbuf_get_info(handle, info))
    return bool(info.truncated)


def _obstacle(status: int, name: str, directory: str) -> Exception | None:
    """The error for a name under which something else lies than a queue of this user's, or a damaged one; None: nothing to be seen.

    It keeps what is known of the last call (_refusal, _layout_met), unless something cannot even be looked at.
    """
    if status not in (lib.RINGBUF_E_CORRUPT, lib.RINGBUF_E_ACCESS, lib.RINGBUF_E_VERSION, lib.RINGBUF_E_GONE):
        return None
    if status == lib.RINGBUF_E_ACCESS and _refusal()[0].startswith(_NOT_ABOUT_OWNERS):
        return None
    try:
        found = observe(name, directory=directory)
    except (errors.SageQueueError, OSError, ValueError):
        return None
    if found is None or (status == lib.RINGBUF_E_GONE) != found.is_misplaced:
        return None
    if status == lib.RINGBUF_E_ACCESS and found.file_type == "file":
        return _of_another(name, directory, found)
    if status == lib.RINGBUF_E_VERSION:
        problem = _layout_met() if found.condition == "other layout" else None
    else:
        problem = found.problem()
    if problem is None:
        return None
    owner = "" if found.uid == os.geteuid() else f" (which belongs to {login_name(found.uid)})"
    text = f"what lies in the place of queue {name!r}, {safe(found.path)}{owner}, {problem}; {_remedy(found, directory)}"
    if status == lib.RINGBUF_E_CORRUPT:
        return errors.QueueCorrupt(text)
    if status == lib.RINGBUF_E_VERSION:
        return errors.QueueVersionError(text)
    if status == lib.RINGBUF_E_GONE:
        return errors.QueueNotFound(errno.ENOENT, text)
    return errors.QueueAccessDenied(errno.EACCES, text) if found.condition == "no file" else None


def _may(path: str, how: int) -> bool:
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def _of_another(name: str, directory: str, found: Observation) -> Exception | None:
    """The error for a queue of another user's; None: that is not the reason."""
    if found.uid == os.geteuid() or not _may(directory, os.W_OK):
        return None
    mode = found.mode & 0o777
    if _may(found.path, os.R_OK | os.W_OK):
        wished = mode if mode & 0o077 else 0o660  # 0600 says that no other user's is meant
        remedy = f"to use it, and trust that user with what is in it, open it with permissions=0o{wished:03o}"
    else:
        remedy = "let that user create it with permissions=0o660 and open it with the same"
    return errors.QueueAccessDenied(
        errno.EACCES,
        f"queue {name!r} in {safe(directory)} is not ours to use: permission denied, for its file, of mode {mode:04o}, belongs to another "
        f"user, {login_name(found.uid)}; {remedy}, or take another name{_why()}",
    )


def _remedy(found: Observation, directory: str) -> str:
    """What helps against something that lies in the place of a queue."""
    try:
        facts = os.stat(directory)
        is_sticky = bool(facts.st_mode & stat.S_ISVTX)
    except OSError:
        return "take another name"
    if is_sticky and os.geteuid() not in (0, found.uid, facts.st_uid):
        return "only that user and root can remove it there; take another name, or a directory of your own in SAGE_QUEUE_DIR"
    if found.condition == "no file" or found.is_misplaced:
        return "remove it by hand, or take another name"
    if found.condition == "other layout":
        return "use the same version everywhere, or remove it with destroy_queue() or `sage-queue rm`"
    return "remove it with destroy_queue() or `sage-queue rm`, or take another name"


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
        f"no room left in {safe(directory)} for {wanted}: {_free_bytes(directory)}; remove what dead processes have left there "
        f"(`sage-queue gc`), make it larger ({LARGER}), give a smaller capacity or arena, or name a larger directory in "
        f"SAGE_QUEUE_DIR{_file_limit()}{_why()}",
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


def _lock_limit() -> str:
    import resource  # here: few need it

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"; or, if it is to lock its memory (lock_memory=True, mlockall), raise the limit on that (ulimit -l, RLIMIT_MEMLOCK), which is "
        f"{human_bytes(limit)} and counts all of the mapping"
    )


# ---- what the operating system refused ----

_LIKELY = {
    ("fcntl(F_OFD_SETLK)", errno.EINVAL): "this system has no locks of open files, which queues rest on: Linux has them since 3.15, "
    "gVisor, proot and other emulations may not",
    ("fcntl(F_OFD_SETLK)", errno.ENOLCK): "the file system, or the kernel, has no room for more locks; name a directory on a tmpfs",
    ("fcntl(F_OFD_SETLK)", errno.EOPNOTSUPP): "the file system has no locks; name a directory on a tmpfs",
    ("mmap", errno.EAGAIN): "this process has locked its memory (mlockall) and its limit RLIMIT_MEMLOCK (ulimit -l) is smaller than the "
    "mapping; raise it, use MCL_ONFAULT, or give a smaller capacity and arena",
    ("mmap", errno.EINVAL): "the file system cannot map single pages (hugetlbfs?); name a directory on a tmpfs",
    ("mmap", errno.ENODEV): "the file system cannot map files; name a directory on a tmpfs",
    ("mmap", errno.ENOMEM): "no address space is left (ulimit -v), or too many mappings (vm.max_map_count)",
    ("fallocate", errno.EOPNOTSUPP): "the file system cannot reserve memory, so a put could end in SIGBUS; name a directory on a tmpfs",
    ("open", errno.ENFILE): "the whole system is out of open files (fs.file-max)",
    ("pwrite", errno.EINVAL): "the file system cannot write single bytes (hugetlbfs?); name a directory on a tmpfs",
    ("linkat", errno.EPERM): "the file system has no hard links; name a directory on a tmpfs",
}
_BY_FILTER = "a filter of system calls (seccomp, a container's profile, SELinux or AppArmor) may forbid it"
#: Calls that never ask whose the file is.
_NOT_ABOUT_OWNERS = ("fcntl", "mmap", "fallocate", "ftruncate", "pwrite", "pread", "fstat", "futex", "sigaction", "getrandom", "flock", "dup3")


def _refusal() -> tuple[str, int]:
    """The system call that was refused in this thread's last call of the library, and its errno; "" and 0: it was not the system."""
    call = lib.ringbuf_error_call()
    return ("", 0) if call == ffi.NULL else (bytes(ffi.string(call)).decode(), int(lib.ringbuf_error_number()))


def _why() -> str:
    """That, as the end of a sentence."""
    call, number = _refusal()
    if not call:
        return ""
    likely = _LIKELY.get((call, number))
    if likely is None and number in (errno.EPERM, errno.EACCES, errno.ENOSYS) and call.startswith(_NOT_ABOUT_OWNERS):
        likely = _BY_FILTER
    return f" ({call}: {os.strerror(number)} [{errno.errorcode.get(number, number)}]{'; ' + likely if likely else ''})"


def _errno_or(usual: int) -> int:
    return _refusal()[1] or usual


def _layout_met() -> str:
    """What the layout is that this thread's last call of the library has met."""
    found = int(lib.ringbuf_error_layout())
    return _of_another_layout(found & ~_SWAPPED, bool(found & _SWAPPED))


_SWAPPED = 1 << 31  # in that number, of a file of another byte order


def _wrong_version(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    return errors.QueueVersionError(
        f"{what} in {safe(directory)} {_layout_met()}; use the same version everywhere, or remove it with destroy_queue()"
    )


def _no_files(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    return errors.QueueNoFiles(
        _errno_or(errno.EMFILE), f"out of file descriptors for {what}; close some, or raise the limit (ulimit -n){_why()}"
    )


def _no_directory(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    return errors.QueueNoDirectory(
        errno.ENOTDIR,
        f"{safe(directory)} is no directory that can hold {what}; name one on a tmpfs in SAGE_QUEUE_DIR, or unset it for /dev/shm{_why()}",
    )


def _access_denied(status: int, what: str, directory: str, needed: int, info: Info | None) -> Exception:
    call, number = _refusal()
    if call.startswith(_NOT_ABOUT_OWNERS):
        return errors.QueueAccessDenied(number, f"{what} in {safe(directory)} cannot be used: the operating system refused{_why()}")
    if os.path.isdir(directory) and not _may(directory, os.W_OK):
        return errors.QueueAccessDenied(
            errno.EACCES,
            f"{what} cannot be used: {safe(directory)} is read-only (mounted so), or not this user's to write to; name another directory in "
            f"SAGE_QUEUE_DIR, or have this one opened{_why()}",
        )
    return errors.QueueAccessDenied(
        errno.EACCES,
        f"{what} in {safe(directory)} is not ours to use: permission denied, or its file belongs to another user (or is no plain file); let "
        f"its owner create it with permissions=0o660 and open it with the same, or take another name{_why()}",
    )


# Each gets (status, which queue, directory, bytes needed, what is fixed about the queue).
_MAKERS: dict[int, Any] = {
    lib.RINGBUF_E_SHUTDOWN: lambda s, what, d, n, i: errors.ShutDown("Queue is shut down"),
    lib.RINGBUF_E_CLOSED: lambda s, what, d, n, i: errors.QueueClosed("Queue is closed"),
    lib.RINGBUF_E_TOO_LARGE: _too_large,
    lib.RINGBUF_E_INVALID: lambda s, what, d, n, i: errors.QueueInvalid(f"{what}: {_text(s)}"),
    lib.RINGBUF_E_NOT_FOUND: lambda s, what, d, n, i: errors.QueueNotFound(
        errno.ENOENT, f'there is no {what} in {safe(d)}; create it first, or open it with mode="open_or_create"'
    ),
    lib.RINGBUF_E_GONE: lambda s, what, d, n, i: errors.QueueNotFound(
        errno.ENOENT, f"{what} is gone, and another one in {safe(d)} has its name now; get a new reference"
    ),
    lib.RINGBUF_E_EXISTS: lambda s, what, d, n, i: errors.QueueExists(
        errno.EEXIST, f'{what} exists in {safe(d)} already; take another name, or mode="open_or_create"'
    ),
    lib.RINGBUF_E_ACCESS: _access_denied,
    lib.RINGBUF_E_CORRUPT: lambda s, what, d, n, i: errors.QueueCorrupt(
        f"{what} in {safe(d)}: the file is not a queue, or something wrote over it or truncated it; remove it with destroy_queue() or "
        "`sage-queue rm`"
    ),
    lib.RINGBUF_E_VERSION: _wrong_version,
    lib.RINGBUF_E_NO_SPACE: _no_space,
    lib.RINGBUF_E_NO_MEMORY: lambda s, what, d, n, i: errors.QueueNoMemory(
        f"no memory or address space left in this process for {what}; give a smaller capacity or arena, or close other queues"
        f"{_lock_limit()}{_why()}"
    ),
    lib.RINGBUF_E_BUSY: lambda s, what, d, n, i: errors.QueueBusy(
        f"{what} in {safe(d)} is in use, and this needs it alone; try again when the others have closed it"
    ),
    lib.RINGBUF_E_NO_FILES: _no_files,
    lib.RINGBUF_E_NO_DIRECTORY: _no_directory,
    lib.RINGBUF_E_NO_DESCRIPTOR: lambda s, what, d, n, i: errors.QueueNoDescriptor(
        errno.EBADF,
        f"this process has closed the file descriptor of {what} (os.closerange, or a library that makes a daemon), and its file in {safe(d)} "
        f"cannot be opened again: it has no name any more, or is not this user's{_why()}; open the queue after that, by name or reference",
    ),
    lib.RINGBUF_E_SYSTEM: lambda s, what, d, n, i: errors.QueueSystemError(
        _errno_or(errno.EIO), f"the operating system refused an operation on {what} in {safe(d)}{_why()}"
    ),
}
