"""Floor 2: waiting by file descriptor: `fileno()` for select, epoll and event loops, and `wait()` for several queues at once.

A descriptor wakes whoever sleeps on it when somebody puts, but not when somebody dies with a message in his hands.  The calls of a
queue look for the dead themselves whenever they wait; `wait()` and the coroutines of aio.py do so every `LOOK_S`; and for programs that
only sleep in a select of their own, fileno() starts a thread that does it for them.
"""

from __future__ import annotations

import os
import time
from _thread import RLock
from weakref import WeakSet

from . import _native
from ._errors import SageQueueError

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


LOOK_S = 0.1


class Readable:
    """The part of SageQueue that shows whether a get would wait."""

    name: str
    _handle: Any

    def fileno(self) -> int:
        """A file descriptor that is readable while a get would not wait: an item is there, or the queue is shut down.

        For select, poll, epoll (level-triggered), `selectors`, `loop.add_reader`, trio, `multiprocessing.connection.wait`.  Do not read
        from it.  It is the same at every call, and closed by close(); other processes have their own, and all show the same.  Others may
        be quicker, so that a get finds nothing after all: use get_nowait().

        The first call starts a daemon thread, one a process, that looks every 100 ms whether somebody died with an item in
        his hands.  (The calls of a queue that wait, wait() and the coroutines do so themselves, and need no thread.)
        """
        fd = _items_fd(self)
        _look_after(self)
        return fd


def _items_fd(queue: Readable) -> int:
    return _native.items_fd(queue._handle, queue.name)


def wait(objects: Iterable[Readable | HasFileno | int], timeout: float | None = None) -> list[Any]:
    """Wait until at least one of these is ready, at most `timeout` seconds, and return those that are, in their order.

    A queue is ready when a get would not wait; anything else that has a fileno(), or is one, when it can be read.
    Returns an empty list if none is ready in time.  Raises QueueClosed if a queue is closed.
    """
    import select

    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    wanted = list(objects)
    queues = [each for each in wanted if isinstance(each, Readable)]
    fds = [_items_fd(each) if isinstance(each, Readable) else _fd_of(each) for each in wanted]
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN | select.POLLPRI)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_S if deadline is None else max(deadline - time.monotonic(), 0.0)
        pause = min(left, LOOK_S) if queues else left if deadline is not None else None
        ready = {fd for fd, _ in poller.poll(None if pause is None else pause * 1000)}
        if ready:
            return [each for each, fd in zip(wanted, fds) if fd in ready]
        if deadline is not None and time.monotonic() >= deadline:
            return []
        for queue in queues:
            _native.recover(queue._handle, queue.name)


def _fd_of(thing: HasFileno | int) -> int:
    if isinstance(thing, int):
        return thing
    try:
        return thing.fileno()
    except AttributeError:
        raise ValueError(f"{thing!r} has no fileno(), and is none; give queues, connections, sockets or the like") from None


# ---- for those who sleep elsewhere ----

_looked_after: WeakSet[Readable] = WeakSet()
_lock = RLock()  # a signal handler may ask for a descriptor while its thread just does that
_running = False


def _look_after(queue: Readable) -> None:
    global _running
    with _lock:
        _looked_after.add(queue)
        if _running:
            return
        import threading

        _running = True
        try:
            threading.Thread(target=_caretaker, name="sage_queue caretaker", daemon=True).start()
        except BaseException:
            _running = False
            raise


def _caretaker() -> None:
    """Ends when none of the queues is left."""
    global _running
    while True:
        time.sleep(LOOK_S)
        with _lock:
            queues = list(_looked_after)
            if not queues:
                _running = False
                return
        while queues:
            queue = queues.pop()
            try:
                _native.recover(queue._handle, queue.name)
            except SageQueueError:  # closed, or damaged; its other calls say which
                _looked_after.discard(queue)
            del queue  # while it sleeps it keeps none alive


def _after_fork() -> None:
    """A child has no such thread until it asks for a descriptor itself."""
    global _lock, _running
    _lock = RLock()
    _running = False


os.register_at_fork(after_in_child=_after_fork)
