"""Floor 2: waiting by file descriptor: `fileno()` for select, epoll and event loops, and `wait()` for several queues at once.

A descriptor wakes those that sleep on it when a message is put, but not when a process dies with a message in its hands.  The calls of a
queue look for the dead themselves while they wait; `wait()` and the coroutines of aio.py do so, too; and for programs that only sleep in a
select of their own, fileno() starts a thread that does it for them.  All of them do so by `_native.watch`: one look serves all that wait
for a queue, in all processes, and each is told when it is to come again, from 0.05 to 4 seconds later.
"""

from __future__ import annotations

import os
import time
from _thread import RLock
from queue import Empty, SimpleQueue
from weakref import WeakSet

from . import _native
from ._errors import SageQueueError
from ._held import deadline_of
from ._native import FOREVER, now_ns

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    class HasFileno(Protocol):
        def fileno(self) -> int: ...


LOOK_S = 0.1  # before the first look
LOOK_NS = int(LOOK_S * 1_000_000_000)
LOOK_MOST_NS = 4_000_000_000  # before any other


class Readable:
    """The part of SageQueue that shows whether a get would wait."""

    name: str
    _handle: Any

    def fileno(self) -> int:
        """A file descriptor that is readable while a get would not wait: an item is there, or the queue is shut down.

        For select, poll, epoll (level-triggered), `selectors`, `loop.add_reader`, trio, `multiprocessing.connection.wait`.  Do not read
        from it.  It is the same at every call, and closed by close(); other processes have their own, and all show the same.  Others may
        be quicker, so that a get finds nothing after all: use get_nowait().

        The first call starts a daemon thread, one a process, that looks now and then whether a process died with an item in
        its hands.  (The calls of a queue that wait, wait() and the coroutines do so themselves, and need no thread.)
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

    deadline = deadline_of(True, timeout)
    wanted = list(objects)
    queues = [each for each in wanted if isinstance(each, Readable)]
    fds = [_items_fd(each) if isinstance(each, Readable) else _fd_of(each) for each in wanted]
    poll = _poll_of(fds) if hasattr(select, "poll") else _select_of(fds)  # eventlet takes poll away, and makes select its own
    look = now_ns() + LOOK_NS if queues else FOREVER
    while True:
        until = min(deadline, look)
        ready = poll(None if until == FOREVER else max(until - now_ns(), 0) * 1e-9)
        if ready:
            return [each for each, fd in zip(wanted, fds) if fd in ready]
        if now_ns() >= deadline:
            return []
        if now_ns() >= look:
            look = min(_native.watch(queue._handle, queue.name) for queue in queues)


def _poll_of(fds: list[int]) -> Callable[[float | None], set[int]]:
    """Waits so many seconds (None: for ever) and gives those of the descriptors that are readable."""
    import select

    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN | select.POLLPRI)
    return lambda pause: {fd for fd, _ in poller.poll(None if pause is None else pause * 1000)}


def _select_of(fds: list[int]) -> Callable[[float | None], set[int]]:
    """As _poll_of(), by select.select."""
    import select

    def poll(pause: float | None) -> set[int]:
        readable, _, exceptional = select.select(fds, [], fds, pause)
        return {*readable, *exceptional}

    return poll


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
_thread: Any = None  # threading.Thread; whether it runs is asked of itself, so nothing that ends it leaves a wrong answer here
_news: SimpleQueue[None] = SimpleQueue()  # one for each queue that is looked after from now on: the thread may be in a long sleep


def _look_after(queue: Readable) -> None:
    global _thread
    with _lock:
        if queue not in _looked_after:
            _looked_after.add(queue)
            _news.put(None)
        if _thread is not None and _thread.is_alive():
            return
        import threading

        # Set before the start: an exception in the middle of start() may leave a thread that runs, or one that never does.
        # Two, where a signal handler comes here meanwhile, are no harm.
        _thread = threading.Thread(target=_caretaker, args=(_news,), name="sage_queue caretaker", daemon=True)
        _thread.start()


def _caretaker(news: SimpleQueue[None]) -> None:
    """Ends when none of the queues is left, and by nothing else: others sleep because it looks."""
    while True:
        try:
            if not _look_round(news):
                return
        except BaseException as error:  # no memory, or an exception that was sent to this thread
            _report(error)
            time.sleep(LOOK_S)


def _look_round(news: SimpleQueue[None]) -> bool:
    """Look once at each queue, and sleep until the next look is due.  False if there is none."""
    global _thread
    with _lock:
        queues = list(_looked_after)
        if not queues:
            _thread = None  # under the lock: a queue that is added from now on starts another
            return False
    next_ns = now_ns() + LOOK_MOST_NS
    while queues:
        queue = queues.pop()
        try:
            next_ns = min(next_ns, _native.watch(queue._handle, queue.name))
        except SageQueueError:  # closed, or damaged; its other calls say which
            _looked_after.discard(queue)
        except BaseException as error:  # of this queue alone, such as the warning that its file is gone where warnings are errors
            _report(error)
            next_ns = min(next_ns, now_ns() + LOOK_NS)
        del queue  # while it sleeps it keeps none alive
    try:
        news.get(timeout=max(next_ns - now_ns(), 0) * 1e-9)
    except Empty:
        pass
    return True


def _report(error: BaseException) -> None:
    """As an exception that ends a thread is reported, but the thread goes on, whatever the hook does."""
    try:
        import threading

        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread())))
    except BaseException:  # the hook is the program's
        pass


def _after_fork() -> None:
    """A child has no such thread until it asks for a descriptor itself."""
    global _lock, _news, _thread
    _lock = RLock()
    _news = SimpleQueue()
    _thread = None


os.register_at_fork(after_in_child=_after_fork)
