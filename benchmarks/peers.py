"""The queues under test, one adapter each: `put(item)`, `get()` and `close()`, and nothing else differs between them.

All get the same treatment: one item a call, blocking, processes made by fork.  Where a queue's own methods do as they are, the adapter
hands those out, so that no call of ours is measured with them.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import platform
import queue
from collections.abc import Callable
from functools import partial
from typing import Any

import sage_queue

try:
    import faster_fifo
except ImportError:
    faster_fifo = None

#: Processes of all measurements are made by this.
CONTEXT = multiprocessing.get_context("fork")

#: For the queues that want to know.  The others are bounded by a pipe (SimpleQueue) or not at all (multiprocessing.Queue).
CAPACITY_BYTES = 4 << 20

#: Large items that may be on their way at once, for those that count items.
PENDING = 4


class Peer:
    """A queue, made in the measuring process and inherited by its workers.  `room_bytes` is for those whose memory has a bound."""

    name: str
    put: Callable[[Any], object]
    get: Callable[[], Any]

    @staticmethod
    def missing() -> str | None:
        """Why this peer cannot take part, if it cannot."""
        return None

    @staticmethod
    def version() -> str:
        return f"CPython {platform.python_version()}"

    def close(self) -> None:
        """This process puts and gets no more.  Returns when all that it has put is on its way."""


class Sage(Peer):
    name = "sage_queue"

    def __init__(self, room_bytes: int = CAPACITY_BYTES) -> None:
        self.queue: Any = sage_queue.SageQueue(capacity=CAPACITY_BYTES, arena=room_bytes)
        self.put = self.queue.put
        self.get = self.queue.get

    @staticmethod
    def version() -> str:
        return sage_queue.__version__

    def close(self) -> None:
        self.queue.close()


class SageViews(Sage):
    """Gets views on shared memory in place of objects of its own."""

    name = "sage_queue views"

    def __init__(self, room_bytes: int = CAPACITY_BYTES) -> None:
        super().__init__(room_bytes)
        self.get = partial(self.queue.get, copy=False)


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
        self._queue = faster_fifo.Queue(max_size_bytes=room_bytes)

    @staticmethod
    def missing() -> str | None:
        return "not installed" if faster_fifo is None else None

    @staticmethod
    def version() -> str:
        return importlib.metadata.version("faster-fifo")

    def put(self, item: Any) -> None:
        while True:
            try:
                return self._queue.put(item)
            except queue.Full:
                pass

    def get(self) -> Any:
        while True:
            try:
                return self._queue.get()
            except queue.Empty:
                pass


OURS = Sage
PEERS: tuple[type[Peer], ...] = (Sage, StandardQueue, StandardSimpleQueue, FasterFifo)
