"""What test_ray.py runs in Ray's workers: plain classes, made into actors there.

A journal says what a process had in its hands at the moment it was killed: each line is written before the next step is taken.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import ray

from sage_queue import Empty, SageQueue, SageQueueRef, ShutDown

SOON = 60.0  # long enough for anything that should happen


def message(producer: str, sequence: int) -> tuple[str, int, bytes]:
    """Says who sent it and in which place, and the content follows from that; some are longer than what C copies out."""
    return producer, sequence, f"{producer}:{sequence};".encode() * (sequence % 7 + 1 if sequence % 100 else 1000)


def drain(queue: SageQueue[Any]) -> list[tuple[str, int]]:
    """Everything until the queue is shut down."""
    seen = []
    while True:
        try:
            item = queue.get(timeout=SOON)
        except ShutDown:
            return seen
        assert item == message(*item[:2])
        seen.append(item[:2])


# ---- how a queue travels ----


@dataclasses.dataclass
class Job:
    """A queue inside an object."""

    title: str
    queue: SageQueue[Any]
    more: dict[str, SageQueueRef]


class Keeper:
    """Keeps a queue in its state; the constructor, too, gets one from Ray."""

    def __init__(self, queue: SageQueue[Any] | None = None) -> None:
        self.queue = queue

    def put(self, item: Any) -> None:
        self.queue.put(item, timeout=SOON)

    def get(self) -> Any:
        return self.queue.get(timeout=SOON)

    def give(self) -> SageQueue[Any]:
        return self.queue

    def make(self, name: str) -> SageQueueRef:
        self.queue = SageQueue(name)
        return self.queue.get_reference()

    def close(self) -> None:
        self.queue.close()

    def raise_it(self, error: BaseException) -> None:
        raise error

    def pid(self) -> int:
        return os.getpid()


# ---- kinds of actors ----


class Producer:
    def produce(self, queue: SageQueue[Any] | SageQueueRef, producer: str, count: int) -> int:
        if isinstance(queue, SageQueueRef):
            queue = queue.get_queue()
        for sequence in range(count):
            queue.put(message(producer, sequence), timeout=SOON)
        return count


class Consumer:
    """Sync or threaded: `max_concurrency` decides."""

    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue

    def consume(self) -> list[tuple[str, int]]:
        return drain(self.queue)


class Grouped:
    """Its putters and its getters have threads of their own, so neither can starve the other; all use one handle."""

    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue

    @ray.method(concurrency_group="putters")
    def produce(self, producer: str, count: int) -> int:
        return Producer().produce(self.queue, producer, count)

    @ray.method(concurrency_group="getters")
    def consume(self) -> list[tuple[str, int]]:
        return drain(self.queue)


class Asynchronous:
    """Blocking calls in an executor, or polling: its event loop goes on either way."""

    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue

    async def produce(self, producer: str, count: int) -> int:
        loop = asyncio.get_running_loop()
        for sequence in range(count):
            await loop.run_in_executor(None, self.queue.put, message(producer, sequence))
        return count

    async def consume(self) -> list[tuple[str, int]]:
        return await asyncio.get_running_loop().run_in_executor(None, drain, self.queue)

    async def poll(self) -> list[tuple[str, int]]:
        seen = []
        while True:
            try:
                item = self.queue.get_nowait()
            except Empty:
                await asyncio.sleep(0.001)
            except ShutDown:
                return seen
            else:
                assert item == message(*item[:2])
                seen.append(item[:2])

    async def ping(self) -> str:
        return "pong"


# ---- to be killed ----


class Journal:
    """Lines in a file that outlive the process that wrote them."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, number: int) -> None:
        os.write(self._file, f"{what} {number}\n".encode())


_journal: Journal | None = None


class Traced:
    """A number that the journal of whoever decodes it mentions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)
        if _journal is not None:
            _journal.write("decoding", self.number)


class Trap:
    """Whoever decodes it first is held for ever, and says who it is in the file at `path`."""

    def __init__(self, path: str, payload: bytes) -> None:
        self.path = path
        self.payload = payload

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return
        os.write(file, b"%d\n" % os.getpid())
        while True:
            time.sleep(1)


class Victim:
    """Its calls have no timeout and no end: it is there to be killed in them."""

    def __init__(self, queue: SageQueue[Any], journal: str) -> None:
        global _journal
        self.queue = queue
        self.journal = _journal = Journal(journal)

    def pid(self) -> int:
        return os.getpid()

    def get(self) -> Any:
        return self.queue.get()

    def get_for_ever(self) -> None:
        while True:
            self.journal.write("got", self.queue.get().number)

    def put_for_ever(self, make: Callable[[int], Any]) -> None:
        number = 0
        while True:
            self.queue.put(make(number))
            self.journal.write("put", number)
            number += 1


class Survivor:
    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue

    def get(self) -> Any:
        return self.queue.get(timeout=SOON)

    def numbers(self) -> list[int]:
        """Everything until the queue is shut down."""
        seen = []
        while True:
            try:
                seen.append(self.queue.get(timeout=SOON).number)
            except ShutDown:
                return seen


def journal_of(path: pathlib.Path, what: str) -> list[int]:
    """The numbers in a journal's finished lines of that kind."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(what + " ")]
