"""Floor 2: `SageQueue` and `SageQueueRef`, each of which constructs the other.

A SageQueue is one process's handle on a queue in shared memory, and behaves exactly as `queue.Queue` does.

What Ctrl-C, an alarm or a kill in the middle of a call costs: nothing.  The message goes through `_native.Port`, which takes it,
decodes it and only then acknowledges it; and whose two operations are subscripts because CPython looks for signals after calls, and
not after those (port.c).  In CPython 3.10 it does, between any two instructions; there a get can be interrupted in the moment of
returning, and what it got is gone.
"""

from __future__ import annotations

import os

from . import _held, _native
from ._address import ANY_ID, Address, as_int, boot_id, full_name, host_name, parse_bytes, parse_maxsize, parse_participants, user_namespace
from ._batches import Batches
from ._codec import Codec, came_from_signal_handler, find_codec
from ._errors import QueueNoDirectory, QueueNotFound, QueueNotLocal, empty, full
from ._held import Lease, Reservation, T, deadline_of
from ._native import ARENA_FULL, INTERRUPTED, TIMEOUT
from ._ready import Readable
from ._retries import Retries, parse_retries, refusal
from ._surroundings import warn_of_sizes
from .aio import AsyncCalls

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Literal, TypeVar, overload

    from ._codec import Serializer

    Self = TypeVar("Self", bound="SageQueue[Any]")
    Mode = Literal["open_or_create", "create", "open", "fresh"]


class SageQueue(Batches[T], AsyncCalls[T], Readable):
    """A work queue in shared memory, for any number of processes and threads; used exactly as a `queue.Queue`.

    name         any non-empty str; None makes an unnamed queue, reached through references, pickling and inheritance
    maxsize      the most items in it, as in queue.Queue; 0: as many as fit into `capacity` and `arena`
    auto_cleanup remove the queue when the last one leaves, even with messages in it (unnamed queues always do)
    capacity     bytes for small messages, or a string such as "16 MiB"; rounded up to a power of two.  Memory is used only as messages
                 first reach it.
    arena        bytes for messages of more than 64 KiB (or an eighth of `capacity`), and for what is leased, reserved or looked at in
                 place.  The largest message is as large as the arena.  Its memory, too, is used only as it is needed, and given back.
                 None: 64 MiB, or a quarter of what the file system can hold if that is less.  0: none.
    mode         "open_or_create", "create" (QueueExists if it is there), "open" (QueueNotFound if it is not), "fresh" (replace one
                 that nobody holds, else QueueBusy)
    namespace    a prefix: the full name is "namespace/name"
    enable_multi_tenant  True: another prefix in front, the user's ($SAGE_USER, else the login name): "user/namespace/name"
    persistent   keep the queue when the last one leaves, even if it is empty
    permissions  of the file; the default keeps other users out, and any other value also opens a queue of another user
    label        this process's name as others see it
    max_participants  how many processes can be attached at a time, 1 to 4095 (a process that has several handles counts once for each)
    serializer   "pickle" (any object that pickle takes), "cloudpickle" (functions and classes of the main program, too), "msgpack" (plain
                 data, by msgspec; other languages read it), "raw" (bytes in, bytes out), or an object with `dumps(item)`, which
                 gives bytes, and `loads(buffer)`; its `name`, else its class's, is recorded in the queue
    max_attempts how often a message is handed out before it is moved to the queue `dead_letter`; 0: any number.  An attempt is over
                 when whoever took the message died, gave it back, or could not decode it.
    dead_letter  the name of the queue for such messages, in the same namespace; made when it is first needed, with the same serializer

    keep_warm    memory that the arena has used is not given back while the queue is idle, only when there is no other
    prefault     the queue gets all its memory now, or QueueNoSpace is raised, and this process maps it: no page fault later, and no
                 QueueNoSpace.  A queue that is made so is also kept warm.
    huge_pages   ask for huge pages in the arena, which helps where the file system has them (a tmpfs mounted with huge=advise)
    lock_memory  what this process touches of the queue is not swapped out; QueueNoMemory beyond RLIMIT_MEMLOCK
    dump         core dumps of this process contain the queue's memory, which they leave out by default

    The last four are wishes of this process for this handle, and not the queue's; docs/memory.md says what each costs.

    An existing queue is opened with its own sizes and its own max_participants; a different `serializer`, `max_attempts` or `dead_letter`
    is a ValueError.

    Any thread may use a queue at any time.  A queue works on after fork(), and pickles as a reference to itself: a child, a pool's
    worker or an actor that receives it attaches to the same queue.  `close()` ends this handle only.
    """

    name: str  #: the full name
    maxsize: int  #: items; 0: as many as fit
    capacity: int  #: bytes for small messages
    arena: int  #: bytes for large messages, and for what is held
    max_participants: int  #: how many can be attached at a time
    auto_cleanup: bool
    serializer: str  #: its name
    max_attempts: int  #: 0: any number
    dead_letter: str | None  #: the full name of the queue for what has had its attempts

    _asked_for: tuple[str | None, str | None, bool] | None = None  # (name, namespace, enable_multi_tenant), if not by reference
    _counts_before: dict[str, int] | None = None  # what get_stats() leaves out since reset_stats()

    def __init__(
        self,
        name: str | None = None,
        maxsize: int = 0,
        auto_cleanup: bool = False,
        *,
        capacity: int | str = "4 MiB",
        arena: int | str | None = None,
        mode: Mode = "open_or_create",
        namespace: str | None = None,
        persistent: bool = False,
        permissions: int = 0o600,
        label: str | None = None,
        max_participants: int = 1024,
        serializer: str | Serializer = "pickle",
        max_attempts: int = 0,
        dead_letter: str | None = None,
        enable_multi_tenant: bool | None = None,
        keep_warm: bool = False,
        prefault: bool = False,
        huge_pages: bool = False,
        lock_memory: bool = False,
        dump: bool = False,
    ) -> None:
        codec = find_codec(serializer)
        items = parse_maxsize(maxsize)
        room = parse_bytes(capacity)
        large = _native.ARENA_DEFAULT if arena is None else parse_bytes(arena, "arena", 0)
        participants = parse_participants(max_participants)
        wishes = {"prefault": prefault, "huge_pages": huge_pages, "lock_memory": lock_memory, "dump": dump}
        memory = sum(_native.MEMORY[wish] for wish, wished in wishes.items() if wished)
        if not 0 <= as_int(permissions, "permissions", "an int such as 0o660") <= 0o777:
            raise ValueError(f"permissions={permissions:#o} is not a file mode; give one from 0 to 0o777, such as 0o660")
        if mode not in ("open_or_create", "create", "open", "fresh"):
            raise ValueError(f'mode={mode!r} is not known; choose one of "open_or_create", "create", "open", "fresh"')
        if name is None and (namespace is not None or enable_multi_tenant or mode == "open"):
            raise ValueError("a queue without a name can neither be opened nor have a namespace; give it a name")
        if auto_cleanup and persistent:
            raise ValueError("auto_cleanup removes the queue when the last one leaves, persistent keeps it; choose one")
        prefix = user_namespace(namespace, enable_multi_tenant)
        full = None if name is None else full_name(name, prefix)
        retries = parse_retries(max_attempts, dead_letter, full, prefix)
        if mode == "open" and full is not None:
            handle = _native.open_by_name(full, permissions=permissions, label=label, memory=memory)
        else:
            handle = _native.create(
                full,
                mode=mode,
                maxsize=items,
                capacity=room,
                arena=large,
                auto_cleanup=bool(auto_cleanup),
                persistent=bool(persistent),
                permissions=permissions,
                label=label,
                max_participants=participants,
                tag=codec.name,
                max_attempts=retries.max_attempts,
                dead_letter=retries.dead_letter,
                keep_warm=bool(keep_warm),
                memory=memory,
            )
        self._adopt(handle, codec, retries)
        self._asked_for = (name, namespace, bool(enable_multi_tenant))
        if mode != "open" and (arena is not None or capacity != "4 MiB"):
            self._warn_of_sizes(self.arena if arena is not None else 0)

    def _warn_of_sizes(self, arena: int) -> None:
        try:
            warn_of_sizes(self._reference.directory, self.capacity, arena, stacklevel=4)
        except Warning:  # warnings are errors here: then there is no queue
            self.close()
            raise

    def _adopt(self, handle: Any, codec: Codec, wanted: Retries) -> None:
        """Become this handle's queue."""
        info = _native.Info(handle)
        self.name = _native.name_of(handle)
        made_for = info.tag or "raw"  # a C program that says nothing means bytes
        if made_for != codec.name:
            _native.close(handle)
            raise ValueError(f"queue {self.name!r} was made with serializer={made_for!r}; open it with the same, not {codec.name!r}")
        retries = Retries.of(info)
        if wanted.max_attempts and wanted != retries:
            _native.close(handle)
            raise ValueError(f"queue {self.name!r} was made with {retries!r}; open it with the same or with neither, not {wanted!r}")
        self.maxsize = info.maxsize
        self.capacity = info.capacity
        self.arena = info.arena
        self.max_participants = info.max_participants
        self.auto_cleanup = info.auto_cleanup
        self.serializer = codec.name
        self.max_attempts = retries.max_attempts
        self.dead_letter = retries.dead_letter
        self._handle = handle
        self._closed = False
        self._codec = codec
        self._reference = _reference_of(handle, info, codec.name)
        directory = self._reference.directory
        self._port_arguments = (
            handle,
            codec,
            _refuser(handle, self.name, directory, info),
            _failure,
        )
        self._port = _native.new_port(*self._port_arguments)
        self._view_ports: dict[bool, _native.Port] = {}

    def _port_for_views(self, writable: bool) -> _native.Port:
        port = self._view_ports.get(writable)
        if port is None:
            port = self._view_ports[writable] = _native.new_port(*self._port_arguments, True, writable)
        return port

    # ---- putting and getting ----

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item into the queue, waiting for room if need be, at most `timeout` seconds.

        Raises Full (no room in time), ShutDown, MessageTooLarge (it can never fit), QueueClosed, ValueError (it cannot be serialized).
        On any of these nothing was put.
        """
        self._port[None if block and timeout is None else deadline_of(block, timeout)] = item

    if TYPE_CHECKING:  # below, too, the last two are meant as keywords; but that Python sees to it costs 26 ns of every call

        def get(self, block: bool = True, timeout: float | None = None, *, copy: bool = True, writable: bool = False) -> T: ...

    else:

        def get(self, block: bool = True, timeout: float | None = None, copy: bool = True, writable: bool = False) -> T:
            """Take the oldest item out of the queue, waiting for one if need be, at most `timeout` seconds.

            With copy=False, the buffers of a large item (arrays, pyarrow tables, bytes as a memoryview) stay where they are in the queue's
            memory, which keeps its room in the arena until the last thing that looks at them is gone, also after close().  They are
            read-only unless `writable`; whatever is written there, nobody else sees.

            Raises Empty (none in time), ShutDown, QueueClosed (in all of these nothing was taken), or ValueError: the message cannot be
            deserialized, and is gone (with max_attempts, it has had one).
            """
            if not copy:
                port = self._port_for_views(bool(writable))
                return port[None if block and timeout is None else deadline_of(block, timeout)]
            return self._port[None if block and timeout is None else deadline_of(block, timeout)]

    def put_nowait(self, item: T) -> None:
        """put(item, block=False)."""
        return self.put(item, False)

    def get_nowait(self) -> T:
        """get(block=False)."""
        return self.get(False)

    # ---- working on a message, and writing one in place ----

    def lease(self, block: bool = True, timeout: float | None = None, *, copy: bool = True, writable: bool = False) -> Lease[T]:
        """Take the oldest item to work on it: `with q.lease() as message:` and in it `message.value`.

        Leaving the `with` acknowledges it, which also counts as task_done(); an exception gives it back, as does the death of this
        process, close(), and dropping the lease.  Others go on meanwhile, however long it takes.  `copy` and `writable` as in get();
        what a view has written is still there when the message is given back.

        Raises as get() does; a message that cannot be deserialized counts as done (with max_attempts, it has had one).
        """
        port = self._port if copy else self._port_for_views(bool(writable))
        taken, value = port.lease(None if block and timeout is None else deadline_of(block, timeout))
        return Lease(self, self.name, self._handle, taken, value)

    def reserve(self, nbytes: int, timeout: float | None = None) -> Reservation[memoryview]:
        """Room for a message of `nbytes` bytes, to be filled in place: `with q.reserve(n) as buffer:` gives a writable memoryview.

        Leaving the `with` puts it; an exception gives it up.  Whoever gets it receives bytes (a memoryview with copy=False); where the
        serializer is "msgpack" or an object, what that makes of the bytes.  Waits at most `timeout` seconds for room in the
        arena, and on leaving as long again for room for one more message: Full, also then, means that nothing was put.

        Raises Full, ShutDown, MessageTooLarge, QueueClosed, or ValueError (the queue has no arena).
        """
        self._check_arena()
        return _held.reserve_bytes(self._port, nbytes, timeout, framed=self._codec.framed)

    def reserve_array(
        self, shape: int | Sequence[int], dtype: Any = float, order: Literal["C", "F"] = "C", timeout: float | None = None
    ) -> Reservation[Any]:
        """As reserve(), for a numpy array, with anything in it: whoever gets it receives an equal array (with "raw", its bytes)."""
        self._check_arena()
        if not self._codec.framed and self._codec.dumps is not None:
            raise ValueError(f"serializer={self.serializer!r} has no message for an array in place; use reserve(), or another serializer")
        return _held.reserve_array(self._port, shape, dtype, order, timeout, framed=self._codec.framed)

    def reserve_like(self, array: Any, timeout: float | None = None) -> Reservation[Any]:
        """reserve_array() with the shape, dtype and order of this numpy array."""
        flags = array.flags
        order: Literal["C", "F"] = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        return self.reserve_array(array.shape, array.dtype, order, timeout)

    def _check_arena(self) -> None:
        if not self.arena:
            raise ValueError(f"queue {self.name!r} was made without an arena, so there is nothing to reserve; create it with one")

    # ---- how full ----

    def qsize(self) -> int:
        """How many items are waiting: the same number in every process.  (Approximate while others put and get.)"""
        return _native.size(self._handle)

    def size(self) -> int:
        """qsize().  (From ray.util.queue.Queue.)"""
        return self.qsize()

    def empty(self) -> bool:
        """Whether no item is waiting.  (Approximate while others put and get.)"""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether an item would have to wait: `maxsize` are there, or one of the size usual in this queue has no room.

        (Approximate while others put and get.)
        """
        stats = _native.stats(self._handle)
        return not _native.has_room(self._handle, stats["bytes_put"] // stats["puts"] if stats["puts"] else 1)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the queue was created, over all processes; sizes in bytes.

        `readers` and `writers` are the attached processes that have got, or put, anything (one can be both).
        """
        stats = _native.stats(self._handle)
        for count, before in (self._counts_before or {}).items():
            stats[count] -= before
        peers = _native.peers(self._handle)
        capacity, used = stats["capacity_bytes"], stats["used_bytes"]
        return {
            "buffer_size": capacity,
            "available_read": used,
            "available_write": capacity - used,
            "readers": sum(1 for peer in peers if peer["gets"]),
            "writers": sum(1 for peer in peers if peer["puts"]),
            "ref_count": stats["participants"],
            "total_bytes_written": stats["bytes_put"],
            "total_bytes_read": stats["bytes_got"],
            "utilization": used / capacity,
            **stats,
        }

    def reset_stats(self) -> None:
        """Have get_stats() of this handle count from now on.  Others go on counting from the queue's creation."""
        stats = _native.stats(self._handle)
        self._counts_before = {
            count: stats[count] for count in ("puts", "gets", "bytes_put", "bytes_got", "sleeps", "recoveries")
        }

    def get_shared_memory_info(self) -> dict[str, Any]:
        """What the queue was asked for as, and its file.  (One that came from a reference was asked for by its full name.)"""
        name, namespace, multi_tenant = self._asked_for or (self.name, None, False)
        return {
            "original_name": self.name if name is None else name,
            "namespaced_name": self.name,
            "namespace": namespace,
            "multi_tenant_enabled": multi_tenant,
            "auto_cleanup": self.auto_cleanup,
            "shm_path": _native.path_of(self._handle),
        }

    # ---- tasks ----

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put and not yet marked with task_done().  (Approximate while others put and get.)"""
        return _native.stats(self._handle)["unfinished"]

    def task_done(self) -> None:
        """Say that one item that was got has been dealt with; join() returns when all have."""
        status = _native.task_done(self._handle)
        if status == _native.TOO_MANY:
            raise ValueError("task_done() called too many times")
        if status:
            raise self._error(status)

    def join(self) -> None:
        """Wait until every item that was ever put has been got and marked with task_done().

        Items whose getter died without marking them count as marked.
        """
        # In pieces, for a signal that comes just before it sleeps is noticed only after it (port_next_look() in port.c).
        piece = 100_000_000
        while (status := _native.join(self._handle, _native.now_ns() + piece)) in (INTERRUPTED, TIMEOUT):
            piece = min(piece * 2, 4_000_000_000)
        if status:
            raise self._error(status)

    # ---- the end ----

    def shutdown(self, immediate: bool = False, *, force: bool = False, grace_period_s: float | None = None) -> None:
        """Shut the queue down, for every process: put() raises ShutDown from now on, and get() does when nothing is left.

        With `immediate`, what is left is thrown away (and counts as done).

        `force` and `grace_period_s` are those of ray.util.queue.Queue: `force` is another word for `immediate`, and a grace
        period changes nothing, for there is no actor that has to be waited for.
        """
        _native.shut_down(self._handle, bool(immediate or force))

    @property
    def is_shutdown(self) -> bool:
        """Whether somebody has shut the queue down."""
        return _native.stats(self._handle)["shutdown"] != 0

    def close(self) -> None:
        """Leave the queue: this handle only.  May be called twice, and from any thread.

        Calls of other threads that are blocked on this handle end with QueueClosed, as does every later call.  The last handle of the
        last process to leave removes the queue if nothing is in it (always with auto_cleanup, never with persistent).
        """
        self._closed = True
        _native.close(self._handle)
        if self._lines:
            self._close_lines()

    def is_closed(self) -> bool:
        """Whether close() was called on this handle."""
        return self._closed

    def destroy(self) -> None:
        """Remove the queue's name and close this handle.  Those who are attached can go on; nobody can attach any more."""
        if self._closed:
            try:
                handle = _attach(self._reference, self.serializer)
            except QueueNotFound:
                return
            _native.unlink(handle)
            _native.close(handle)
        else:
            _native.unlink(self._handle)
            self.close()

    def join_thread(self) -> None:
        """Returns at once: put() has put when it returns, there is no feeder thread.  (From multiprocessing.Queue.)"""

    def cancel_join_thread(self) -> None:
        """Does nothing: there is no feeder thread.  (From multiprocessing.Queue.)"""

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, _close: Any = _native.close) -> None:
        try:
            _close(self._handle)
        except Exception:  # never opened, or the interpreter is on its way out
            pass

    # ---- going elsewhere ----

    def get_reference(self) -> SageQueueRef:
        """Plain data that leads to this queue from any process of this machine: pickle it, write it as JSON, pass it on."""
        return self._reference

    def __reduce__(self) -> tuple[Any, ...]:
        if self._codec.own is None:
            return _queue_of, (self._reference,)
        return _queue_of, (self._reference, self._codec.own)

    def __repr__(self) -> str:
        state = "closed"
        if not self._closed:
            try:
                state = f"{self.qsize()}/{self.maxsize} items, open" if self.maxsize else f"{self.qsize()} items, open"
            except Exception as error:
                state = f"{error}"
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    def _error(self, status: int) -> Exception:
        return _native.error_of(status, name=self.name, directory=self._reference.directory, handle=self._handle)


def _refuser(handle: Any, name: str, directory: str, info: _native.Info) -> Callable[[int, bool, bool, int], None]:
    """What raises the exception when a put or get cannot be.  It does not hold the queue, which holds it."""

    def refuse(status: int, is_put: bool, polling: bool, size: int) -> None:
        if status == ARENA_FULL:
            used = _native.stats(handle)["arena_used_bytes"]
            raise full(f"Queue is full: no run of {size} bytes free in the arena of {info.arena} bytes ({used} in use)", size)
        if status == _native.DEAD_LETTER:
            raise refusal(name, info, directory, _native.dead_letter_status(handle))
        if status != TIMEOUT:
            raise _native.error_of(status, name=name, directory=directory, needed=size, info=info, handle=handle)
        if is_put:
            raise full("Queue is full" if polling else "Put operation timed out", size)
        raise empty("Queue is empty" if polling else "Get operation timed out")

    return refuse


def _failure(error: Exception, is_put: bool) -> Exception | None:
    """What to raise for an item that cannot be serialized, or a message that cannot be deserialized; None if it is not at fault."""
    if came_from_signal_handler(error):
        return None
    try:
        text = str(error)
    except Exception as other:  # else it would be taken for an error of ours, and the message come again and again
        if isinstance(other, MemoryError) or came_from_signal_handler(other):
            raise
        text = type(error).__name__
    failure = ValueError(f"Failed to {'' if is_put else 'de'}serialize item: {text}")
    failure.__cause__ = error
    return failure


class SageQueueRef(Address):
    """Where a queue is.  Plain data: immutable, hashable, picklable, JSON both ways; it holds nothing open.

    SageQueue.get_reference() makes one that leads to exactly that queue.  SageQueueRef(queue_name, maxsize=0,
    create_if_not_exists=True) leads to whichever queue has that full name on this machine when get_queue() is called, and makes
    it then if there is none.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @overload
        def __init__(self, name: str, id: str, **fields: Any) -> None: ...
        @overload
        def __init__(self, queue_name: str, maxsize: int = 0, create_if_not_exists: bool = True, **fields: Any) -> None: ...

    def __init__(self, *arguments: Any, **fields: Any) -> None:
        if "id" in fields or (len(arguments) > 1 and isinstance(arguments[1], str)):
            super().__init__(*arguments, **fields)
        else:
            super().__init__(**_fields_by_name(*arguments, **fields))

    def get_queue(self, serializer: Serializer | None = None) -> SageQueue[Any]:
        """A new handle on exactly this queue.

        Where it was made with a serializer object, that is not in the reference: give it here.
        Raises QueueNotFound if it is gone (also if another queue has its name by now), QueueNotLocal if it is in the memory of
        another machine or container, ValueError if the serializer is another one, or missing.
        """
        return _queue_of(self, serializer)


def _fields_by_name(
    queue_name: str | None = None, maxsize: int = 0, create_if_not_exists: bool = True, *, name: str | None = None, **fields: Any
) -> dict[str, Any]:
    """The fields of a reference to whichever queue has the name."""
    if (queue_name is None) == (name is None):
        raise TypeError("a reference by name takes one name: SageQueueRef(queue_name, maxsize=0, create_if_not_exists=True)")
    return {
        "name": full_name(name if queue_name is None else queue_name),  # type: ignore[arg-type]
        "id": ANY_ID,
        "maxsize": parse_maxsize(maxsize),
        "capacity": parse_bytes("4 MiB"),
        "arena": _native.ARENA_DEFAULT,
        "directory": _native.default_directory(),
        "creator_pid": os.getpid(),
        "host": host_name(),
        "boot_id": boot_id(),
        "create_if_not_exists": bool(create_if_not_exists),
        **fields,
    }


def _queue_of(reference: SageQueueRef, serializer: Serializer | None = None) -> SageQueue[Any]:
    codec = find_codec(reference.serializer if serializer is None else serializer)
    queue: SageQueue[Any] = SageQueue.__new__(SageQueue)
    queue._adopt(_attach(reference, codec.name), codec, Retries())
    return queue


def _reference_of(handle: Any, info: _native.Info, serializer: str) -> SageQueueRef:
    return SageQueueRef(
        _native.name_of(handle),
        info.id,
        maxsize=info.maxsize,
        capacity=info.capacity,
        arena=info.arena,
        serializer=serializer,
        directory=os.path.dirname(_native.path_of(handle)),
        permissions=info.permissions,
        auto_cleanup=info.auto_cleanup,
        creator_pid=info.creator_pid,
        host=host_name(),
        boot_id=boot_id(),
    )


def _attach(reference: SageQueueRef, tag: str) -> Any:
    try:
        if reference.id != ANY_ID:
            return _native.attach(
                reference.name, reference.id, permissions=reference.permissions, directory=reference.directory
            )
        if reference.create_if_not_exists and _is_of_here(reference):
            return _create(reference, tag)
        return _native.open_by_name(reference.name, permissions=reference.permissions, directory=reference.directory)
    except (QueueNotFound, QueueNoDirectory) as error:
        # Whether it is the same memory is decided by the id in it, never by names; they only help to say why it is not.
        if _is_of_here(reference):
            raise
        elsewhere = QueueNotLocal(
            f"queue {reference.name!r} lives on host {reference.host!r} (boot {reference.boot_id}), and this is {host_name()!r} "
            f"(boot {boot_id()}); a queue can only be used on the machine, and in the container, that it was made in"
        )
        elsewhere.code = error.code
        raise elsewhere from error


def _is_of_here(reference: SageQueueRef) -> bool:
    """Whether it was made on this run of this machine, as far as it says."""
    return reference.host in ("", host_name()) and reference.boot_id in ("", boot_id())


def _create(reference: SageQueueRef, tag: str) -> Any:
    return _native.create(
        reference.name,
        mode="open_or_create",
        maxsize=reference.maxsize,
        capacity=reference.capacity,
        arena=reference.arena,
        auto_cleanup=reference.auto_cleanup,
        persistent=False,
        permissions=reference.permissions or 0o600,
        label=None,
        tag=tag,
        directory=reference.directory,
    )
