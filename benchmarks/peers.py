"""The queues under test, one adapter each: `put(item)`, `get()` and `close()`, and nothing else differs between them.

All get the same treatment: blocking, processes made by fork, and one item a call or BATCH of them.  Where a queue's own methods do
as they are, the adapter hands those out, so that no call of ours is measured with them.  An adapter has `put_many` and `get_many` only
if its queue has such calls, and `put_async` and `get_async` likewise.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import multiprocessing
import os
import pickle
import platform
import queue
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import sage_queue

try:
    import faster_fifo  # type: ignore[import-not-found]
except ImportError:
    faster_fifo = None
try:
    import hyperq  # type: ignore[import-untyped]
except ImportError:
    hyperq = None
try:
    import quick_queue  # type: ignore[import-untyped]
except ImportError:
    quick_queue = None
try:
    import zmq
    import zmq.asyncio
except ImportError:
    zmq = None  # type: ignore[assignment]

#: Processes of all measurements are made by this.
CONTEXT = multiprocessing.get_context("fork")

#: For the queues that want to know.  The others are bounded by a pipe (SimpleQueue) or not at all (multiprocessing.Queue).
CAPACITY_BYTES = 4 << 20

#: For those that count items: as many as CAPACITY_BYTES is for messages of 64 bytes.
CAPACITY_ITEMS = CAPACITY_BYTES // 64

#: Large items that may be on their way at once, for those that count items.
PENDING = 4

#: Items a call of put_many, and at most that many a call of get_many.
BATCH = 100

_NOT_INSTALLED = "not installed"
_numbers = itertools.count()


def _new_name() -> str:
    """Of something that the whole machine sees."""
    return f"sage-bench-{os.getpid()}-{next(_numbers)}"


class Peer:
    """A queue, made in the measuring process and inherited by its workers.  `room_bytes` is for those whose memory has a bound."""

    name: str
    put: Callable[[Any], object]
    get: Callable[[], Any]
    put_many: Callable[[list[Any]], object]
    get_many: Callable[[], list[Any]]
    put_async: Callable[[Any], Awaitable[object]]
    get_async: Callable[[], Awaitable[Any]]

    @staticmethod
    def missing() -> str | None:
        """Why this peer cannot take part, if it cannot."""
        return None

    @staticmethod
    def version() -> str:
        return f"CPython {platform.python_version()}"

    def put_marks(self, mark: Any, consumers: int) -> None:
        """Put a mark for each of the consumers, after everything that this process has put."""
        for _ in range(consumers):
            self.put(mark)

    def drain(self) -> list[Any]:
        """What is in the queue now, where one can tell without waiting."""
        return []

    def close(self) -> None:
        """This process puts and gets no more.  Returns when all that it has put is on its way."""


class Sage(Peer):
    name = "sage_queue"

    def __init__(self, room_bytes: int = CAPACITY_BYTES, serializer: str = "pickle") -> None:
        self.queue: Any = sage_queue.SageQueue(capacity=CAPACITY_BYTES, arena=room_bytes, serializer=serializer)
        self.put = self.queue.put
        self.get = self.queue.get
        self.put_many = self.queue.put_many
        self.get_many = partial(self.queue.get_many, BATCH)
        self.put_async = self.queue.put_async
        self.get_async = self.queue.get_async

    @staticmethod
    def version() -> str:
        return sage_queue.__version__

    def drain(self) -> list[Any]:
        return list(self.queue.drain())

    def close(self) -> None:
        self.queue.close()


class SageRaw(Sage):
    """Bytes in, bytes out."""

    def __init__(self) -> None:
        super().__init__(serializer="raw")


class SageViews(Sage):
    """Gets views on shared memory in place of objects of its own."""

    name = "sage_queue views"

    def __init__(self, room_bytes: int = CAPACITY_BYTES) -> None:
        super().__init__(room_bytes)
        self.get = partial(self.queue.get, copy=False)


class SageInThreads(Sage):
    """Waits in another thread for each call, as one has to where a queue has no coroutines."""

    name = "sage_queue, to_thread"

    def __init__(self) -> None:
        super().__init__()
        self.put_async = partial(asyncio.to_thread, self.queue.put)
        self.get_async = partial(asyncio.to_thread, self.queue.get)


class StandardQueue(Peer):
    name = "mp.Queue"

    def __init__(self, room_bytes: int = 0) -> None:
        # A thread pickles later what is put now, so large items need a bound.
        self._queue = CONTEXT.Queue(PENDING if room_bytes else 0)
        self.put = self._queue.put
        self.get = self._queue.get

    def close(self) -> None:
        self._queue.close()
        self._queue.join_thread()  # a thread of its own does the sending


class StandardSimpleQueue(Peer):
    name = "mp.SimpleQueue"

    def __init__(self, room_bytes: int = 0) -> None:
        self._queue = CONTEXT.SimpleQueue()
        self.put = self._queue.put
        self.get = self._queue.get

    def close(self) -> None:
        self._queue.close()


class FasterFifo(Peer):
    """Its calls give up after ten seconds, and a get may find nothing although it should wait; hence the loops.

    They cost some 40 ns a call, of several thousand.  Its close() is for the whole queue, so there is none here.
    """

    name = "faster-fifo"

    def __init__(self, room_bytes: int = CAPACITY_BYTES) -> None:
        self._queue: Any = faster_fifo.Queue(max_size_bytes=room_bytes)
        self.put = self._put
        self.get = self._get
        self.put_many = self._put_many
        self.get_many = self._get_many

    @staticmethod
    def missing() -> str | None:
        return _NOT_INSTALLED if faster_fifo is None else None

    @staticmethod
    def version() -> str:
        return importlib.metadata.version("faster-fifo")

    def _put(self, item: Any) -> None:
        while True:
            try:
                self._queue.put(item)
                return
            except queue.Full:
                pass

    def _get(self) -> Any:
        while True:
            try:
                return self._queue.get()
            except queue.Empty:
                pass

    def _put_many(self, items: list[Any]) -> None:
        while True:
            try:
                self._queue.put_many(items)
                return
            except queue.Full:
                pass

    def _get_many(self) -> list[Any]:
        while True:
            try:
                items: list[Any] = self._queue.get_many(max_messages_to_get=BATCH)
                return items
            except queue.Empty:
                pass


class QuickQueue(Peer):
    """multiprocessing.Queue with lists of items, "buckets", in it, each pickled as one.  Its documentation has two ways:

    put, get                put() collects a bucket, of a size that it chooses by itself, before it puts that; get() takes a bucket
                            apart.  What is put is visible to nobody before its bucket is full, or put_remain() was called.
    put_bucket, get_bucket  The caller's own buckets: here BATCH items.

    A bucket goes to one consumer, so there is no way to leave a mark for each of several.
    """

    name = "quick-queue"

    def __init__(self) -> None:
        self._queue = quick_queue.QQueue(ctx=CONTEXT)
        self.put = self._queue.put
        self.get = self._queue.get
        self.put_many = self._queue.put_bucket
        self.get_many = self._queue.get_bucket

    @staticmethod
    def missing() -> str | None:
        return _NOT_INSTALLED if quick_queue is None else None

    @staticmethod
    def version() -> str:
        return importlib.metadata.version("quick-queue")

    def put_marks(self, mark: Any, consumers: int) -> None:
        assert consumers == 1
        self.put(mark)
        self._queue.put_remain()

    def close(self) -> None:
        self._queue.end()
        self._queue.join_thread()


class HyperQ(Peer):
    """Objects, with multiprocessing's pickler.  Made by name in shared memory, and inherited.

    The names go at once, so that a measurement that is ended leaves nothing behind.
    """

    name = "HyperQ"

    def __init__(self) -> None:
        name = _new_name()
        self._queue = self._new(CAPACITY_BYTES, name=name)
        for file in (name, f"b_{name}"):
            Path("/dev/shm", file).unlink()
        self.put = self._queue.put
        self.get = self._queue.get

    @staticmethod
    def _new(*arguments: Any, **options: Any) -> Any:
        return hyperq.HyperQ(*arguments, **options)

    @staticmethod
    def missing() -> str | None:
        return _NOT_INSTALLED if hyperq is None else None

    @staticmethod
    def version() -> str:
        return importlib.metadata.version("hyperq")


class BytesHyperQ(HyperQ):
    """Bytes in, bytes out."""

    name = "BytesHyperQ"

    @staticmethod
    def _new(*arguments: Any, **options: Any) -> Any:
        return hyperq.BytesHyperQ(*arguments, **options)


class Zmq(Peer):
    """PUSH and PULL sockets over ipc, which block at their high-water marks, and pickle protocol 5.

    Every consumer binds an address of its own, and producers connect to all of them: no process in between.  With several consumers
    a producer has a socket for each and takes them in turn, passing over those that are full, as one socket connected to all would
    do; but that one would not let us say who gets which end mark.  (Throughput is the same both ways.)

    A producer closes only when all consumers have.  Otherwise libzmq loses what the kernel still holds for a consumer that is at
    its high-water mark when the producer closes, also with an unlimited linger period.
    """

    name = "pyzmq"

    def __init__(self, consumers: int = 1) -> None:
        self._addresses = [f"ipc://@{_new_name()}" for _ in range(consumers)]  # no files
        self._bound = CONTEXT.Value("i", 0)
        self._left = CONTEXT.Value("i", 0)
        self._all_left = CONTEXT.Event()
        self._context: Any = None  # this process's
        self._senders: list[Any] = []
        self._receiver: Any = None
        self.put = self._first_put
        self.get = self._first_get
        self.put_async = self._first_put_async
        self.get_async = self._first_get_async

    @staticmethod
    def missing() -> str | None:
        return _NOT_INSTALLED if zmq is None else None

    @staticmethod
    def version() -> str:
        return f"{importlib.metadata.version('pyzmq')}, libzmq {zmq.zmq_version()}"

    def put_marks(self, mark: Any, consumers: int) -> None:
        assert consumers == len(self._senders)
        for sender in self._senders:
            sender.send(pickle.dumps(mark, 5))

    def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
            with self._left.get_lock():
                self._left.value += 1
                if self._left.value == len(self._addresses):
                    self._all_left.set()
        if self._senders:
            self._all_left.wait()
        for sender in self._senders:
            sender.close()
        if self._context is not None:
            self._context.term()

    # A socket belongs to the process that made it, so the first call makes it.  Later calls are the inner functions and nothing else.

    def _first_put(self, item: Any) -> None:
        self._connect(zmq.Context)
        sends = [sender.send for sender in self._senders]
        dumps, full, at_once = pickle.dumps, zmq.Again, zmq.NOBLOCK

        if len(sends) == 1:
            (send,) = sends

            def put(item: Any) -> None:
                send(dumps(item, 5))

        else:
            turns, attempts = itertools.cycle(sends), len(sends)

            def put(item: Any) -> None:
                data = dumps(item, 5)
                for _ in range(attempts):
                    try:
                        next(turns)(data, at_once)
                        return
                    except full:
                        pass
                next(turns)(data)

        self.put = put
        put(item)

    def _first_get(self) -> Any:
        self._bind(zmq.Context)
        receive, loads = self._receiver.recv, pickle.loads
        self.get = lambda: loads(receive())
        return self.get()

    async def _first_put_async(self, item: Any) -> None:
        self._connect(zmq.asyncio.Context)
        (send,) = [sender.send for sender in self._senders]
        dumps = pickle.dumps

        async def put(item: Any) -> None:
            await send(dumps(item, 5))

        self.put_async = put
        await put(item)

    async def _first_get_async(self) -> Any:
        if self._receiver is None:  # one of many tasks
            self._bind(zmq.asyncio.Context)
        receive, loads = self._receiver.recv, pickle.loads

        async def get() -> Any:
            return loads(await receive())

        self.get_async = get
        return await get()

    def _connect(self, kind: Callable[[], Any]) -> None:
        self._context = kind()
        for address in self._addresses:
            sender = self._context.socket(zmq.PUSH)
            sender.sndhwm = CAPACITY_ITEMS
            sender.reconnect_ivl = 5  # ms; the consumer may come later
            sender.connect(address)
            self._senders.append(sender)

    def _bind(self, kind: Callable[[], Any]) -> None:
        with self._bound.get_lock():
            me = self._bound.value
            self._bound.value += 1
        self._context = kind()
        self._receiver = self._context.socket(zmq.PULL)
        self._receiver.rcvhwm = CAPACITY_ITEMS
        self._receiver.bind(self._addresses[me])


OURS = Sage

#: Those that every message and every topology of `throughput` is put to.
PEERS: tuple[type[Peer], ...] = (Sage, StandardQueue, StandardSimpleQueue, FasterFifo)

#: Those with a way of their own, each beside what we have for that.
SPECIALISTS: tuple[type[Peer], ...] = (QuickQueue, HyperQ, BytesHyperQ, Zmq)
