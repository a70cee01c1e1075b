"""Soak: everything at once, for as long as asked, and at every rest a look at what has been left behind.

    python tests_py/soak.py [MINUTES]       default 15; `.ci/soak [MINUTES]` is the same on a fresh checkout

One process, the conductor, holds five queues and a sixth for timing through the whole run.  It works in rounds.  In a round, workers on
all queues are killed with SIGKILL, stopped and continued at random, and replaced by others, forked or new programs: they put and get
singly, in batches, in place and by asyncio, items of 0 B to 16 MiB; they lease, give back, and close with leases and views in their
hands; they wait for descriptors; they come and go, fork, use threads; and make, shut down, and make again queues of their own.  One
worker, the resident, is never harmed and lives through all rounds.  A round ends when everybody has left and all is got.

Accounting is exact.  A worker writes what it does to a journal of its own, a file, by write(2), which a kill does not undo:

    BEGUN     before a put          RETURNED  the put has returned          REFUSED   the put has raised, so nothing was put
    CALLED    before a get          INTENDED  the get is about to return this item (written when it is unpickled, before the message
              or an ack                       is released), or the ack is about to be made
    DONE      the get or the ack has returned, and the item is what its producer put

So an item whose put returned is DONE once; or not at all, if a killed worker INTENDED it since it last CALLED and could not say DONE.
An item whose put did not return is DONE once at most, one that was refused never.

What is counted at each rest is compared with the first rest, behind the round that warms up:

    same      every rest finds the same number as the first: files, descriptors, participants, blocks, tasks ...
    level     may move, but not grow: memory.  Grown is what its last third's median says against the first third's, if the rests
              in between say so, too (Kendall's tau)
    cost      processor time of a fixed job at each rest, as a ratio of the last third's median to the first third's
    gone      after the end, nothing at all is there

Ends with status 1 if anything was lost, doubled, spoilt or left behind; --plant NAME makes a leak in every round, to see it found.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import faulthandler
import gc
import itertools
import json
import mmap
import os
import pickle
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Literal

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads would come and go by themselves

import numpy
from helpers import forked

import sage_queue
from sage_queue import Empty, Full, QueueNotFound, SageQueue, SageQueueRef, ShutDown, _native, collect_garbage

#: Long enough for anything that happens at all.
HANG_S = 120.0

# ---- items ----

LARGEST = 16 << 20
#: What all items are made of.
POOL = random.Random(5).randbytes(LARGEST + (1 << 20))
NOBODY = (1 << 60) - 1  #: the key of all messages of no bytes

BEGUN, RETURNED, REFUSED, CALLED, INTENDED, DONE, BROKEN = range(1, 8)


class Journal:
    """What one worker has done.  `number` is its own, and the upper part of the keys of its items."""

    def __init__(self, directory: str, number: int) -> None:
        self.number = number
        self.intending = False  # whether what is unpickled is about to be got
        self._items = itertools.count(1)  # also for threads
        self._file = os.open(os.path.join(directory, str(number)), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def new_key(self) -> int:
        return self.number << 36 | next(self._items)

    def note(self, kind: int, *keys: int) -> None:
        os.write(self._file, struct.pack(f"<{len(keys)}Q", *[kind << 60 | key for key in keys]))

    def calls(self, *keys: int) -> None:
        """A get or an ack begins."""
        self.note(CALLED, 0)
        if keys:
            self.note(INTENDED, *keys)

    def close(self) -> None:
        os.close(self._file)


journal: Journal


def piece(key: int, size: int) -> memoryview:
    start = key * 2654435761 % (1 << 20)
    return memoryview(POOL)[start : start + size]


class Parcel:
    """An item that says what it should be, and writes down that it was unpickled."""

    __slots__ = ("key", "size", "body")

    def __init__(self, key: int, size: int, body: Any) -> None:
        self.key, self.size, self.body = key, size, body

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.key, self.size, self.body)

    def is_whole(self) -> bool:
        return len(self.body) == self.size and memoryview(self.body) == piece(self.key, self.size)


def _arrived(key: int, size: int, body: Any) -> Parcel:
    if journal.intending:
        journal.note(INTENDED, key)
    return Parcel(key, size, body)


class Plain:
    """A serializer for bytes: the key, then the piece; or nothing at all."""

    name = "soak-plain"

    def dumps(self, item: bytes) -> bytes:
        return item

    def loads(self, buffer: Any) -> bytes:
        message = bytes(buffer)
        if journal.intending:
            journal.note(INTENDED, key_of(message))
        return message


def key_of(message: bytes) -> int:
    return int.from_bytes(message[:8], "little") if message else NOBODY


def plain_item(key: int, size: int) -> bytes:
    return key.to_bytes(8, "little") + piece(key, size)


def finished(item: Any) -> None:
    """The item is ours: say so, or that it is not what was put."""
    if isinstance(item, Parcel):
        key, whole = item.key, item.is_whole()
    else:
        key, whole = key_of(item), not item or item == plain_item(key_of(item), len(item) - 8)
    journal.note(DONE if whole else BROKEN, key)


# ---- the queues ----

Kind = Literal["small", "mixed", "bounded", "plain", "async"]
SIZES: dict[str, dict[str, Any]] = {
    "small": {"capacity": "64 KiB", "arena": "1 MiB"},
    "mixed": {"capacity": "1 MiB", "arena": "40 MiB"},  # two of the largest do not fit at once
    "bounded": {"capacity": "256 KiB", "arena": 0, "maxsize": 50},
    "plain": {"capacity": "256 KiB", "arena": "4 MiB", "serializer": Plain()},
    "async": {"capacity": "128 KiB", "arena": "2 MiB", "maxsize": 200},
}


def make(kind: str, mode: Literal["create", "open_or_create"] = "create") -> SageQueue[Any]:
    return SageQueue(f"soak-{kind}", mode=mode, persistent=True, label="conductor", **SIZES[kind])


def attach(reference: SageQueueRef) -> SageQueue[Any]:
    return reference.get_queue(Plain()) if reference.serializer == Plain.name else reference.get_queue()


def some_size(kind: str, chance: random.Random) -> int:
    draw = chance.random()
    if kind == "mixed":
        if draw < 0.6:
            return chance.randrange(4096)
        if draw < 0.9:
            return chance.randrange(64 << 10, 1 << 20)
        return chance.randrange(1 << 20, 4 << 20) if draw < 0.98 else chance.randrange(8 << 20, LARGEST + 1)
    if kind in ("plain", "async") and draw > 0.97:
        return chance.randrange(64 << 10, 512 << 10)
    return chance.randrange(1500) if draw < 0.95 else 0


class Control:
    """A page that all share: which part of the round it is, and what the resident is doing."""

    RUN, FINISH, LEAVE, END = range(4)

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), 4096)

    phase = property(lambda self: self._page[0], lambda self, value: self._page.__setitem__(0, value))
    round = property(lambda self: self._page[1], lambda self, value: self._page.__setitem__(1, value))
    rested = property(lambda self: self._page[2], lambda self, value: self._page.__setitem__(2, value))
    """The round behind which the resident is at rest."""


# ---- what the workers do ----


class Worker:
    """One process's part in a round."""

    def __init__(self, control: Control, directory: str, references: dict[str, SageQueueRef], first_number: int) -> None:
        self.control = control
        self.directory = directory
        self.references = references
        self.number = first_number
        self.chance = random.Random(first_number * 7919 + time.monotonic_ns())
        self.visits = 0

    def one_in(self, bound: int) -> bool:
        return self.chance.randrange(bound) == 0

    @property
    def running(self) -> bool:
        return bool(self.control.phase == Control.RUN)

    @property
    def leaving(self) -> bool:
        return bool(self.control.phase >= Control.LEAVE)

    def child_number(self) -> int:
        """The numbers up to the next multiple of 256 are those of our children."""
        self.number += 1
        assert self.number % 256
        return self.number

    # ---- putting ----

    def item(self, kind: str, key: int) -> Any:
        size = some_size(kind, self.chance)
        if kind == "plain":
            return plain_item(key, size)
        body: Any = bytes(piece(key, size))
        if size > 1024 and self.one_in(2) or size > 64 << 10:
            body = numpy.frombuffer(piece(key, size), numpy.uint8)
        return Parcel(key, size, body)

    def put(self, kind: str, q: SageQueue[Any]) -> None:
        keys = [journal.new_key() for _ in range(self.chance.choice((1, 1, 1, 2, 8, 20)))]
        if kind == "plain" and self.one_in(5):
            return self.reserve(q, keys[0])
        items = [self.item(kind, key) for key in keys]
        if kind == "plain" and self.one_in(4):
            keys, items = [NOBODY], [b""]
        journal.note(BEGUN, *keys)
        try:
            if len(items) == 1:
                q.put(items[0], timeout=self.chance.random() * 0.3)
            else:
                q.put_many(items, timeout=self.chance.random() * 0.3)
        except (Full, sage_queue.MessageTooLarge):
            journal.note(REFUSED, *keys)
        else:
            journal.note(RETURNED, *keys)

    def reserve(self, q: SageQueue[Any], key: int) -> None:
        size = self.chance.randrange(400 << 10)
        journal.note(BEGUN, key)
        try:
            reservation = q.reserve(8 + size, timeout=0.2)
            target = reservation.target
            target[:] = plain_item(key, size)
            if self.one_in(4):
                reservation.abort()
                raise Full
            reservation.commit()
        except Full:
            journal.note(REFUSED, key)
        else:
            journal.note(RETURNED, key)

    def produce(self, *kinds: str) -> None:
        while self.running:
            self.visits += 1
            kind = self.chance.choice(kinds)
            with attach(self.references[kind]) as q:
                for _ in range(self.chance.randrange(1, 60)):
                    if self.running:
                        self.put(kind, q)

    # ---- getting ----

    def got(self, q: SageQueue[Any], items: Iterable[Any]) -> None:
        for item in items:
            finished(item)
            q.task_done()

    def get(self, q: SageQueue[Any], views: list[Any]) -> bool:
        """Whether something was there."""
        journal.calls()
        journal.intending = True
        timeout = self.chance.random() * 0.1
        try:
            draw = self.chance.randrange(6)
            if draw == 0:
                items = q.get_many(self.chance.randrange(1, 40), timeout=timeout)
            elif draw == 1:
                items = q.drain()
            elif draw == 2:
                items = q.get_nowait_batch(min(q.qsize(), 5))
            elif draw == 3:
                items = [q.get(timeout=timeout, copy=False, writable=self.one_in(2))]
                views += items
            else:
                items = [q.get(timeout=timeout)]
        except Empty:
            items = []
        finally:
            journal.intending = False
        self.got(q, items)
        return bool(items)

    def consume(self, *kinds: str) -> None:
        """Get, hold some of it where it lies, now and then across a close."""
        while True:
            self.visits += 1
            leaving, idle = self.leaving, True
            kind = self.chance.choice(kinds)
            views: list[Any] = []
            with attach(self.references[kind]) as q:
                for _ in range(self.chance.randrange(1, 60)):
                    if self.get(q, views):
                        idle = False
                    elif self.leaving:
                        break
                    if len(views) > 3:
                        views.pop(self.chance.randrange(4))
            self.check(views)
            if leaving and idle:
                return

    def check(self, views: list[Any]) -> None:
        """What is still looked at is what it was, although the queue is closed."""
        for item in views:
            if isinstance(item, Parcel) and not item.is_whole():
                journal.note(BROKEN, item.key)

    def lease(self, *kinds: str) -> None:
        """Lease several at a time; acknowledge most, give some back, drop some, and close with some in our hands."""
        while True:
            self.visits += 1
            leaving, idle = self.leaving, True
            kind = self.chance.choice(kinds)
            held: list[Any] = []
            q = attach(self.references[kind])
            for _ in range(self.chance.randrange(1, 60)):
                try:
                    held.append(q.lease(timeout=self.chance.random() * 0.05, copy=self.one_in(2)))
                    idle = False
                except Empty:
                    if self.leaving:
                        break
                while held and (len(held) > 6 or self.one_in(2)):
                    self.end(held.pop(self.chance.randrange(len(held))), gently=leaving)
            while held and (leaving or self.one_in(2)):
                self.end(held.pop(), gently=leaving)
            q.close()  # gives the others back
            held.clear()
            if leaving and idle:
                return

    def end(self, lease: Any, gently: bool) -> None:
        draw = 99 if gently else self.chance.randrange(20)
        if draw == 0:
            return  # dropped
        if draw < 3:
            lease.nack()
            return
        item = lease.value
        journal.calls(item.key if isinstance(item, Parcel) else key_of(item))
        lease.ack()
        finished(item)

    def listen(self, *kinds: str) -> None:
        """Sleep on descriptors: our own wait(), select, or epoll."""
        while True:
            self.visits += 1
            leaving, idle = self.leaving, True
            queues = [attach(self.references[kind]) for kind in kinds]
            views: list[Any] = []
            for _ in range(self.chance.randrange(1, 40)):
                draw = self.chance.randrange(3)
                if draw == 0:
                    ready = sage_queue.wait(queues, timeout=0.05)
                elif draw == 1:
                    ready = select.select(queues, [], [], 0.05)[0]
                else:
                    with select.epoll() as epoll:
                        for q in queues:
                            epoll.register(q, select.EPOLLIN)
                        ready = [q for q in queues if q.fileno() in dict(epoll.poll(0.05))]
                for q in ready:
                    idle = not self.get(q, views) and idle
                if self.leaving and not ready:
                    break
            for q in queues:
                q.close()
            self.check(views)
            if leaving and idle:
                return

    # ---- asyncio ----

    def in_a_loop(self, kind: str) -> None:
        """Tasks that put and get and are cancelled at random."""
        while True:
            self.visits += 1
            leaving = self.leaving
            with attach(self.references[kind]) as q:
                got = asyncio.run(self._tasks(kind, q))
            if leaving and not got:
                return

    async def _tasks(self, kind: str, q: SageQueue[Any]) -> int:
        got = 0

        async def getter() -> None:
            nonlocal got
            for _ in range(20):
                try:
                    item = await q.get_async(timeout=0.05)
                except Empty:
                    continue
                got += 1
                self.got(q, [item])

        async def putter() -> None:
            for _ in range(20):
                if not self.running:
                    return
                keys = [journal.new_key() for _ in range(self.chance.choice((1, 3)))]
                items = [self.item(kind, key) for key in keys]
                journal.note(BEGUN, *keys)
                try:
                    await (q.put_async(items[0], timeout=0.2) if len(items) == 1 else q.put_many_async(items, timeout=0.2))
                except Full:
                    journal.note(REFUSED, *keys)
                else:
                    journal.note(RETURNED, *keys)
                await asyncio.sleep(0)

        journal.calls()
        journal.intending = True
        try:
            tasks = [asyncio.create_task(putter()) for _ in range(3)] + [asyncio.create_task(getter()) for _ in range(4)]
            await asyncio.sleep(self.chance.random() * 0.1)
            for task in tasks:
                if self.one_in(3):
                    task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):  # CancelledError is none
                    raise outcome
        finally:
            journal.intending = False
        return got

    # ---- coming and going ----

    def visit(self, *kinds: str) -> None:
        """Attach and leave: look in, fork with the handle, use it in threads, or leave without a word."""
        while self.running:
            self.visits += 1
            kind = self.chance.choice(kinds)
            q = attach(self.references[kind])
            draw = self.chance.randrange(6)
            if draw == 0:
                q.get_stats(), repr(q), q.full()
            elif draw == 1:
                in_child(lambda: self._inherit(kind, q), wait=self.one_in(2))
            elif draw == 2:
                threads = [threading.Thread(target=self.put, args=(kind, q)) for _ in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            elif draw == 3:
                second = pickle.loads(pickle.dumps(q.get_reference()))
                for _ in range(5):
                    attach(second).close()
            elif draw == 4:
                in_child(lambda: time.sleep(0.02), wait=False)  # with an inherited handle that it never uses
            self.put(kind, q)
            if self.one_in(2):
                q.close()
            del q
            reap()

    def _inherit(self, kind: str, q: SageQueue[Any]) -> None:
        global journal
        journal = Journal(self.directory, self.inherited_number)
        for _ in range(5):
            self.put(kind, q)
            self.get(q, [])
        if self.one_in(2):
            q.close()

    @property
    def inherited_number(self) -> int:
        """A number that no other child has: the parent counts when it forks (in_child)."""
        return children_numbers[-1]

    def own(self) -> None:
        """A queue of our own name: made, used with a child, shut down, emptied, and made again under the same name."""
        name = f"soak-own-{self.number}"
        while self.running:
            self.visits += 1
            q: SageQueue[Any] = SageQueue(
                name, mode="create", auto_cleanup=True, capacity="64 KiB", arena="1 MiB", maxsize=self.chance.choice((0, 10))
            )
            count, at_once = self.chance.randrange(200), self.one_in(3)
            reads, writes = os.pipe()
            owner = os.getpid()  # asked here: we may be killed before the child asks
            child = in_child(lambda: os.write(writes, _count_until_shutdown(q, owner).to_bytes(4, "little")), wait=False)
            put = 0
            for number in range(count):
                try:
                    q.put(bytes(number * 37 % 9000), timeout=0.5)
                    put += 1
                except Full:
                    pass
            q.shutdown(immediate=at_once)
            ours = 0
            for _ in q:
                q.task_done()
                ours += 1
            theirs = int.from_bytes(os.read(reads, 4), "little")
            os.close(reads)
            os.close(writes)
            _, status = os.waitpid(child, 0)
            assert status == 0, f"the child ended with {status}"
            assert ours + theirs == put or at_once and ours + theirs <= put, (ours, theirs, put, at_once)
            assert q.unfinished_tasks == 0 and q.is_shutdown
            if self.one_in(2):
                q.destroy()
            q.close()


def _count_until_shutdown(q: SageQueue[Any], owner: int) -> int:
    """How many items we get until the queue is shut down, or its owner killed."""
    count = 0
    while os.getppid() == owner:
        try:
            q.get(timeout=0.2)
        except Empty:
            continue
        except ShutDown:
            break
        q.task_done()
        count += 1
    return count


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


children_numbers: list[int] = []
next_child: Callable[[], int]


def in_child(action: Callable[[], object], wait: bool) -> int:
    """Run it in a fork, which leaves without any clean-up.  Its pid."""
    children_numbers.append(next_child())
    child = forked(action)
    if wait:
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the child ended with {status}"
    return child


def reap() -> None:
    """Our children that have ended must have ended well."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            assert ended[1] == 0, f"the child ended with {ended[1]}"
    except ChildProcessError:
        pass


#: What there is of workers: the method, and the queues.  Kills, stops and replacements choose among them.
ROLES: list[tuple[str, tuple[str, ...]]] = [
    ("produce", ("small", "bounded")),
    ("produce", ("mixed",)),
    ("produce", ("plain", "small")),
    ("consume", ("small", "mixed")),
    ("consume", ("bounded", "plain", "async")),
    ("lease", ("mixed", "plain")),
    ("lease", ("small", "bounded")),
    ("listen", ("async", "small", "plain")),
    ("in_a_loop", ("async",)),
    ("in_a_loop", ("small",)),
    ("visit", ("small", "mixed", "bounded", "plain", "async")),
    ("own", ()),
]


#: What the resident does in turn, half a second each.
RESIDENT_ROLES: list[tuple[str, tuple[str, ...]]] = [
    ("consume", ("mixed", "plain")),
    ("lease", ("mixed", "small")),
    ("listen", ("async", "plain")),
    ("in_a_loop", ("async",)),
]


def work(role: int, control: Control, directory: str, references: dict[str, SageQueueRef], number: int) -> None:
    global journal, next_child
    worker = Worker(control, directory, references, number)
    journal = Journal(directory, number)
    next_child = worker.child_number
    method, kinds = ROLES[role]
    getattr(worker, method)(*kinds)
    gc.collect()
    while True:  # children that have inherited from us
        try:
            _, status = os.waitpid(-1, 0)
            assert status == 0, f"the child ended with {status}"
        except ChildProcessError:
            break


def work_as_program(packed: str) -> None:
    path, directory, role, references, number = pickle.loads(bytes.fromhex(packed))
    faulthandler.register(signal.SIGUSR1)
    work(role, Control(path), directory, references, number)


def resident(path: str, directory: str) -> None:
    """Works in every round in all roles that get, on all queues; closes everything at its end, and rests."""
    global journal, next_child
    faulthandler.register(signal.SIGUSR1)
    keep_no_large_memory()
    die_with_parent()
    control = Control(path)
    while control.phase != Control.END:
        if control.rested == control.round:
            time.sleep(0.01)
            continue
        this = control.round
        with open(os.path.join(directory, "references"), "rb") as file:
            references = pickle.load(file)
        worker = Worker(control, directory, references, 256)
        journal, next_child = Journal(directory, 256), worker.child_number
        for method, kinds in itertools.cycle(RESIDENT_ROLES):
            if worker.leaving:
                break
            worker.control = _Leave(control)  # type: ignore[assignment]
            getattr(worker, method)(*kinds)
            worker.control = control
        journal.close()
        del worker
        give_memory_back()
        control.rested = this


class _Leave:
    """A control that says RUN when first asked, and then that it is time to leave."""

    def __init__(self, control: Control) -> None:
        self._until = time.monotonic() + 0.5
        self._control = control

    @property
    def phase(self) -> int:
        return int(self._control.phase) if time.monotonic() < self._until else Control.LEAVE


# ---- accounting ----


def account(directory: str, killed: set[int]) -> dict[str, Any]:
    """Read all journals of the round."""
    kinds: dict[int, list[Any]] = {kind: [] for kind in range(1, 8)}
    hands: list[Any] = []
    mask = numpy.uint64((1 << 60) - 1)
    for file in os.listdir(directory):
        if not file.isdigit():
            continue
        records = numpy.fromfile(os.path.join(directory, file), numpy.uint64)
        kind = records >> numpy.uint64(60)
        for each in (BEGUN, RETURNED, REFUSED, INTENDED, DONE, BROKEN):
            kinds[each].append(records[kind == each] & mask)
        if int(file) in killed:
            calls = numpy.flatnonzero(kind == CALLED)
            since = records[calls[-1] :] if len(calls) else records[:0]
            since_kind = kind[len(records) - len(since) :]
            ours = Counter((since[since_kind == INTENDED] & mask).tolist())
            ours.subtract(Counter((since[since_kind == DONE] & mask).tolist()))
            hands += (+ours).elements()
    keys = {kind: numpy.concatenate(parts) if parts else numpy.zeros(0, numpy.uint64) for kind, parts in kinds.items()}
    empty = {kind: int((found == NOBODY).sum()) for kind, found in keys.items()}
    keys = {kind: found[found != NOBODY] for kind, found in keys.items()}
    done, times = numpy.unique(keys[DONE], return_counts=True)
    missing = numpy.setdiff1d(keys[RETURNED], done)
    in_hands = numpy.intersect1d(missing, numpy.array(hands, numpy.uint64))
    empty_hands = sum(1 for key in hands if key == NOBODY)
    empty_missing = empty[RETURNED] - empty[DONE]
    # Messages of no bytes have no name; those are only counted.
    problems = {
        "lost": len(missing) - len(in_hands),
        "lost of those of no bytes": max(0, empty_missing - empty_hands),
        "twice": int((times > 1).sum()) + max(0, empty[DONE] - (empty[BEGUN] - empty[REFUSED])),
        "from nowhere": len(numpy.setdiff1d(done, keys[BEGUN])),
        "refused and got": len(numpy.intersect1d(keys[REFUSED], done)),
        "spoilt": len(keys[BROKEN]),
    }
    return {
        "put": len(keys[RETURNED]) + empty[RETURNED],
        "got": len(keys[DONE]) + empty[DONE],
        "refused": len(keys[REFUSED]) + empty[REFUSED],
        "in hands": len(in_hands) + max(0, empty_missing),
        **problems,
        "good": not any(problems.values()),
    }


# ---- looking for what is left ----


def of_process(pid: int | str, directory: str) -> dict[str, int]:
    with open(f"/proc/{pid}/maps") as maps:
        lines = maps.readlines()
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    descriptors = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            pass  # that of the listing itself
    return {
        "descriptors": len(descriptors),
        "mappings of queues": sum(directory in line for line in lines),
        "mappings in all": len(lines),
        "threads": int(fields["Threads"]),
        "memory of its own, KiB": int(fields["RssAnon"].split()[0]),
    }


def of_directory(directory: str) -> dict[str, int]:
    files = os.listdir(directory)
    return {
        "files": len(files),
        "KiB": sum(os.stat(os.path.join(directory, file)).st_blocks for file in files) // 2,
    }


def of_queues(queues: Iterable[SageQueue[Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for q in queues:
        stats = q.get_stats()
        total["participants"] += len(_native.peers(q._handle))
        for field in ("items", "unfinished", "reserved", "held", "leased"):
            total[field] += stats[field]
        total["arena bytes in use"] += stats["arena_used_bytes"]
        total["arena bytes backed"] += stats["arena_backed_bytes"]
        total["findings of check"] += sum(count for what, count in _native.check_arena(q._handle).items() if what != "runs")
    return {field: total[field] for field in total}


#: What may move, but not grow, and from what growth on it counts.
LEVELS = {"memory of its own, KiB": 4096, "mappings in all": 20, "KiB": 8192, "arena bytes backed": 8 << 20}


#: So many rests have a trend.
ENOUGH = 6


def tau(values: list[float]) -> float:
    """Kendall's: 1 if each is larger than all before, -1 if smaller."""
    pairs = [(a > b) - (a < b) for i, b in enumerate(values) for a in values[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 0.0


def thirds(values: list[float]) -> tuple[float, float]:
    third = max(1, len(values) // 3)
    return median(values[:third]), median(values[-third:])


def verdict(what: str, values: list[float]) -> str:
    """'' or what is wrong."""
    name = what.split(": ")[1]
    if (name == "cost" or name in LEVELS) and len(values) < ENOUGH:
        return ""
    if name == "cost":
        first, last = thirds(values)
        return "SLOWER" if last > first * 1.5 and tau(values) > 0.5 else ""
    if name in LEVELS:
        first, last = thirds(values)
        grown = last - first > max(LEVELS[name], first * 0.15)
        return "GROWS" if grown and tau(values) > 0.5 else ""
    return "LEAK" if any(value != values[0] for value in values) else ""


def keep_no_large_memory() -> None:
    """Have malloc give large buffers back at once, whatever it has seen before: what it keeps is no leak of ours."""
    ctypes.CDLL(None).mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD


def give_memory_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def fixed_job(q: SageQueue[Any], large: Any) -> float:
    """The same work each time.  Microseconds of processor time for each of its steps: the best of 3."""
    costs = []
    for _ in range(3):
        began = time.process_time()
        for number in range(3000):
            q.put(number)
            q.get()
            q.task_done()
        for _ in range(100):
            q.put(large)
            q.get(copy=False)
            q.task_done()
        for number in range(500):
            q.put(number)
            q.lease().ack()
        for _ in range(100):
            q.put_many(range(30))
            for _ in q.get_many(30):
                q.task_done()
        costs.append(time.process_time() - began)
    return min(costs) * 1e6 / 3700


# ---- the conductor ----


class Conductor:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = tempfile.mkdtemp(prefix="sage_queue_soak.", dir=base)
        self.journals = tempfile.mkdtemp(prefix="sage_queue_soak.")
        os.environ["SAGE_QUEUE_DIR"] = self.directory
        path = os.path.join(self.journals, "control")
        with open(path, "wb") as file:
            file.truncate(4096)
        self.control_path, self.control = path, Control(path)
        self.queues: dict[str, SageQueue[Any]] = {}
        self.running: dict[int, tuple[int, int]] = {}  # pid: (role, number)
        self.killed: set[int] = set()
        self.next_number = 512
        self.totals: Counter[str] = Counter()
        self.readings: dict[str, list[float]] = {}
        self.problems: list[str] = []
        self.planted: list[Any] = []
        self.more_work = 0  # planted
        self.resident: subprocess.Popen[bytes] | None = None

    def start(self, role: int) -> None:
        """A worker: forked, or now and then a new program.  A forked one inherits our handles, and sometimes closes them first."""
        number = self.next_number
        self.next_number += 256
        references = {kind: q.get_reference() for kind, q in self.queues.items()}
        as_program, closes = self.chance.random() < 0.04, self.chance.random() < 0.5
        if as_program:
            packed = pickle.dumps((self.control_path, self.journals, role, references, number)).hex()
            pid = subprocess.Popen([sys.executable, __file__, "--worker", packed]).pid
        else:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    faulthandler.register(signal.SIGUSR1)
                    die_with_parent()
                    if closes:
                        for q in self.queues.values():
                            q.close()
                    work(role, self.control, self.journals, references, number)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
        self.totals["new programs" if as_program else "forks"] += 1
        self.running[pid] = (role, number)

    def reap(self, block: bool = False) -> None:
        """Workers and orphans that have ended; those that we have not killed must have ended well."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.resident and pid == self.resident.pid:
                self.problems.append(f"the resident ended with {status}")
                self.resident = None
                continue
            role, number = self.running.pop(pid, (-1, -1))
            if status and number not in self.killed:
                self.problems.append(f"a worker ({ROLES[role][0] if role >= 0 else 'an orphan'}) ended with {status}")

    def kill(self, pid: int) -> None:
        self.killed.add(self.running[pid][1])
        self.totals["kills"] += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        del self.running[pid]

    def wait_until(self, what: str, question: Callable[[], object]) -> None:
        give_up = time.monotonic() + HANG_S
        while not question():
            if time.monotonic() > give_up:
                for pid in [*self.running, *([self.resident.pid] if self.resident else [])]:
                    os.kill(pid, signal.SIGUSR1)
                time.sleep(1)
                raise TimeoutError(f"{what} does not come: {[(pid, ROLES[role]) for pid, (role, _) in self.running.items()]}")
            time.sleep(0.005)

    def storm(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        stopped: dict[int, float] = {}
        while (now := time.monotonic()) < end and not self.problems:
            time.sleep(self.chance.expovariate(self.options.kills))
            self.reap()
            for pid in [pid for pid, until in stopped.items() if until < now]:
                del stopped[pid]
                os.kill(pid, signal.SIGCONT)
            victims = [pid for pid in self.running if pid not in stopped]
            if not victims:
                continue
            victim = self.chance.choice(victims)
            draw = self.chance.random()
            if draw < 0.25:
                os.kill(victim, signal.SIGSTOP)
                self.totals["stops"] += 1
                stopped[victim] = now + self.chance.random() * 0.6
            else:
                if draw > 0.9:
                    os.kill(victim, signal.SIGSTOP)
                role = self.running[victim][0]
                self.kill(victim)
                self.start(role)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    def round(self, number: int, seconds: float) -> None:
        """A storm, and then everybody leaves and all is got."""
        with open(os.path.join(self.journals, "references"), "wb") as file:
            pickle.dump({kind: q.get_reference() for kind, q in self.queues.items()}, file)
        self.killed.clear()
        self.control.round, self.control.phase = number % 250 + 1, Control.RUN
        for role in range(len(ROLES)):
            self.start(role)
        self.storm(seconds)
        if self.problems:
            return
        puts = {pid for pid, (role, _) in self.running.items() if ROLES[role][0] in ("produce", "visit", "own")}
        self.control.phase = Control.FINISH

        def gone(pids: set[int]) -> bool:
            self.reap()
            return not pids & set(self.running)

        self.wait_until("the end of the producers", lambda: gone(puts))
        self.control.phase = Control.LEAVE
        self.wait_until("the end of the workers", lambda: gone(set(self.running)))
        self.wait_until("the resident's rest", lambda: not self.resident or self.control.rested == self.control.round)
        self.wait_until("the end of the orphans", self._no_orphans)
        self._empty()
        if number % 2:
            self._make_again(self.chance.choice(list(SIZES)))

    def _no_orphans(self) -> bool:
        self.reap()
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = file.read().split()
        return len(children) == (1 if self.resident else 0)

    def _empty(self) -> None:
        """Get what the others have left: what came back from the killed, and what nobody was there for any more."""
        global journal
        journal = Journal(self.journals, 1)
        for kind, q in self.queues.items():
            _native.recover(q._handle, q.name)
            while True:
                journal.calls()
                journal.intending = True
                try:
                    item = q.get(timeout=0 if q.empty() else 1)
                except Empty:
                    break
                finally:
                    journal.intending = False
                finished(item)
                q.task_done()
                self.totals["left over"] += 1
                del item
        journal.close()
        collect_garbage()  # what killed owners of queues have left

    def _make_again(self, kind: str) -> None:
        """Shut a queue down, and make another one of its name."""
        q = self.queues[kind]
        q.shutdown()
        try:
            q.get()
            self.problems.append(f"a get from {q.name}, shut down and empty, returned")
        except ShutDown:
            pass
        reference = q.get_reference()
        q.destroy()
        self.queues[kind] = make(kind)
        try:
            attach(reference).close()
            self.problems.append(f"a reference to the former {q.name} led to the later one")
        except QueueNotFound:
            pass
        self.totals["queues made again"] += 1

    def account(self) -> None:
        """In a child, so that it leaves no memory with us."""
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writes, json.dumps(account(self.journals, self.killed)).encode())
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as pipe:
            found = json.loads(pipe.read())
        os.waitpid(child, 0)
        good = found.pop("good")
        self.totals.update(found)
        if not good:
            self.problems.append(f"messages: {found}")
            return
        for file in os.listdir(self.journals):
            if file.isdigit():
                os.unlink(os.path.join(self.journals, file))

    def settle(self) -> None:
        """Until the arenas have given their idle memory back, for which somebody has to call now and then."""
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            if not sum(q.get_stats()["arena_backed_bytes"] for q in self.queues.values()):
                return
            for q in self.queues.values():
                try:
                    q.get(timeout=0.05)
                    self.problems.append("a message came out of an empty queue")
                except Empty:
                    pass

    def look(self) -> None:
        give_memory_back()
        for q in self.queues.values():  # with no listener left, who tells closes his end when he next has to tell
            _native.recover(q._handle, q.name)
        cost = fixed_job(self.job, self.large) * 2**self.more_work
        readings: dict[str, dict[str, Any]] = {
            "directory": of_directory(self.directory),
            "queues": of_queues([*self.queues.values(), self.job]),
            "conductor": of_process("self", self.directory),
            "resident": of_process(self.resident.pid, self.directory) if self.resident else {},
            "job": {"cost": cost},
        }
        for where, found in readings.items():
            for what, value in found.items():
                self.readings.setdefault(f"{where}: {what}", []).append(value)

    def run(self) -> int:
        options = self.options
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans of the killed come to us
        print(f"soak: {options.minutes:g} minutes, rounds of {options.round:g} s, seed {options.seed}", flush=True)
        keep_no_large_memory()
        before = of_process("self", self.directory)
        self.large = numpy.frombuffer(POOL, numpy.uint8, 200 << 10)
        self.queues = {kind: make(kind) for kind in SIZES}
        self.job: SageQueue[Any] = SageQueue("soak-job", persistent=True, capacity="256 KiB", arena="4 MiB")
        self.resident = subprocess.Popen([sys.executable, __file__, "--resident", self.control_path, self.journals])
        end = time.monotonic() + options.minutes * 60
        number = 0
        while (left := end - time.monotonic()) > 0 and not self.problems or number < options.least_rounds and not self.problems:
            self.round(number, min(options.round, max(left, 0.2)))
            if self.problems:
                break
            if options.plant and number:
                plant(options.plant, self)
            self.account()
            if options.settle:
                self.settle()
            if number:  # the first round warms up
                self.look()
            number += 1
            facts = ", ".join(f"{count:,} {what}" for what, count in self.totals.items())
            print(f"round {number}: {facts}", flush=True)
        self.totals["rounds"] = number
        return self.end(before)

    def end(self, before: dict[str, int]) -> int:
        self.control.phase = Control.END
        if self.resident:
            self.wait_until("the resident's end", lambda: self.resident and self.resident.poll() is not None)
            if self.resident.returncode:
                self.problems.append(f"the resident ended with {self.resident.returncode}")
        for q in [*self.queues.values(), self.job]:
            q.destroy()
        self.queues.clear()
        del self.job, q
        gc.collect()
        rows = [(what, values, verdict(what, values)) for what, values in self.readings.items()]
        after = of_process("self", self.directory)
        rows += [
            (f"after the end: {what}", [float(want), float(have)], "" if want == have else "LEFT")
            for what, want, have in (
                ("files", 0, of_directory(self.directory)["files"]),
                *((what, before[what], after[what]) for what in ("descriptors", "mappings of queues", "threads")),
            )
        ]
        report(rows)
        self.problems += [f"{bad}: {what}" for what, _, bad in rows if bad]
        for problem in self.problems:
            print(f"PROBLEM: {problem}")
        print("good: nothing lost, nothing twice, nothing left" if not self.problems else f"{len(self.problems)} problems")
        return 1 if self.problems else 0

    def clean_up(self) -> None:
        for pid in list(self.running):
            os.kill(pid, signal.SIGKILL)
        if self.resident and self.resident.poll() is None:
            self.resident.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.journals, ignore_errors=True)


def report(rows: list[tuple[str, list[float], str]]) -> None:
    """The leak table: the first rest, the medians of the first and the last third, the last rest."""
    print(f"\n{'what':<40}{'first':>12}{'1st third':>12}{'last third':>12}{'last':>12}  verdict")
    for what, values, bad in rows:
        first, last = thirds(values)
        shown = [f"{value:,.1f}" if what.endswith("cost") else f"{value:,.0f}" for value in (values[0], first, last, values[-1])]
        name = what.split(": ")[1]
        trend = len(values) < ENOUGH and (name == "cost" or name in LEVELS)
        ratio = f", ratio {last / first:.2f}" if name == "cost" and first else ""
        print(f"{what:<40}" + "".join(f"{value:>12}" for value in shown) + f"  {bad or ('no trend yet' if trend else 'good')}{ratio}")
    print(flush=True)


# ---- leaks made on purpose ----


def plant(names: str, conductor: Conductor) -> None:
    """One more of each of these."""
    q, keep = conductor.queues["mixed"], conductor.planted
    for name in names.split(","):
        if name == "descriptor":
            keep.append(os.open("/dev/null", os.O_RDONLY))
        elif name == "mapping":
            with open(q.get_shared_memory_info()["shm_path"], "r+b") as file:
                keep.append(mmap.mmap(file.fileno(), 4096))
        elif name == "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        elif name == "memory":
            keep.append(bytes(POOL[: 8 << 20]))
        elif name == "file":
            SageQueue(f"planted-{len(keep)}", persistent=True, capacity="4 KiB", arena=0).close()
            keep.append(None)
        elif name == "participant":
            keep.append(conductor.job.get_reference().get_queue())
        elif name == "block":
            keep.append(conductor.job.reserve(100_000))
        elif name == "task":
            conductor.job.put("never marked")
            conductor.job.get()
        elif name == "cost":
            conductor.more_work += 1
        elif name in ("lost", "twice"):
            lost_journal = Journal(conductor.journals, 2 + len(keep))
            keep.append(lost_journal)
            key = lost_journal.new_key()
            lost_journal.note(BEGUN, key)
            lost_journal.note(RETURNED, key)
            if name == "twice":
                lost_journal.note(DONE, key, key)
        else:
            raise SystemExit(f"nothing to plant is called {name!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("minutes", nargs="?", type=float, default=15.0)
    parser.add_argument("--round", type=float, default=20.0, help="seconds of storm in a round")
    parser.add_argument("--least-rounds", type=int, default=3)
    parser.add_argument("--kills", type=float, default=15.0, help="kills and stops a second, on average")
    parser.add_argument("--settle", action=argparse.BooleanOptionalAction, default=True, help="wait until idle memory has gone back")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--plant", help="leaks to make, with commas between them")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--resident", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work_as_program(options.worker)
        return 0
    if options.resident:
        resident(*options.resident)
        return 0
    conductor = Conductor(options)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(2))
    try:
        return conductor.run()
    finally:
        conductor.clean_up()


if __name__ == "__main__":
    sys.exit(main())
