"""A queue beside a model of it: whatever is called, in whatever order, through whatever handle, both say the same.

The model is a deque of what waits, two lists of what was given back, and a few numbers.  It is exact about what comes out, in
which order and at which attempt, about the counts, and about who is attached.  Whether there is room it asks the library itself
(ringbuf_has_room), and then holds it to the answer; that the answer is sensible is checked at the ends, where nothing is there
and where nothing can be.

Environment
    SAGE_QUEUE_MODEL_STEPS   how many steps to make; 2,000 if it is not set, the same ones each time.  With it, others each time:
                             SAGE_QUEUE_MODEL_STEPS=100000 python -m pytest tests_py/test_model.py -s --timeout 0
                             prints how many were made, in what time, and how often each rule came.
"""

from __future__ import annotations

import collections
import faulthandler
import itertools
import json
import os
import pickle
import select
import threading
import time
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import sage_queue
from sage_queue import Empty, Full, MessageTooLarge, QueueClosed, SageQueue, SageQueueRef, ShutDown, _native

numpy = pytest.importorskip("numpy")
pytest.importorskip("cloudpickle")
msgspec = pytest.importorskip("msgspec")

STEPS = int(os.environ.get("SAGE_QUEUE_MODEL_STEPS", "0"))
STEPS_OF_ONE_RUN = 50
SHORT_STEPS = 2000

#: What ringbuf_take copies out while it takes; a larger message in the arena is looked at where it lies.
COPIED_OUT_BYTES = 4096
SHORTLY = 0.0005
PATIENTLY = 0.12  # long enough to go round a record that is in the way


# ---- items ----


class Json:
    """A serializer of the user's own."""

    name = "model's json"

    def dumps(self, item: Any) -> bytes:
        return json.dumps(item).encode()

    def loads(self, buffer: Any) -> Any:
        return json.loads(bytes(buffer))


SERIALIZERS: dict[str, Any] = {
    "pickle": "pickle",
    "cloudpickle": "cloudpickle",
    "msgpack": "msgpack",
    "raw": "raw",
    "own": Json(),
}


class Unreadable:
    """Can be put, and its message cannot be decoded."""

    def __init__(self, number: int, padding: str) -> None:
        self.number = number
        self.padding = padding

    def __reduce__(self) -> Any:
        return _cannot_read, (self.number, self.padding)


def _cannot_read(number: int, padding: str) -> None:
    raise LookupError(f"number {number} is unreadable")


def make_item(serializer: str, kind: str, number: int, size: int) -> Any:
    """An item of about `size` bytes that no other is equal to."""
    if serializer == "raw":
        return (b"%d " % number) + bytes(size)
    if serializer in ("msgpack", "own"):
        return [number, "x" * size]
    if kind == "bytes":
        return (b"%d " % number) + bytes(size)
    if kind == "array":
        return {"number": number, "array": numpy.full(max(size, 1), number % 251, "u1")}
    if kind == "unreadable":
        return Unreadable(number, "x" * size)
    return (number, "x" * size)


def same(got: Any, item: Any) -> bool:
    """Whether this is what must come out for that item."""
    if isinstance(item, bytes):
        return isinstance(got, (bytes, memoryview)) and got == item
    if isinstance(item, numpy.ndarray):
        return isinstance(got, numpy.ndarray) and got.dtype == item.dtype and numpy.array_equal(got, item)
    if isinstance(item, dict):
        return bool(got["number"] == item["number"] and same(got["array"], item["array"]))
    return type(got) is type(item) and bool(got == item)


class Message:
    """What the model knows of one message."""

    def __init__(self, number: int, item: Any, size: int, *, in_run: bool) -> None:
        self.number = number  # in the order of the puts
        self.item = item
        self.size = size  # as a message
        self.in_run = in_run  # it lies in the arena while it waits; when it has been taken, all or nothing of it does
        self.attempts = 0

    @property
    def readable(self) -> bool:
        return not isinstance(self.item, Unreadable)

    @property
    def stays_in_place(self) -> bool:
        """Whether get(copy=False) gives something that looks at the queue's memory."""
        has_buffer = isinstance(self.item, (bytes, dict, numpy.ndarray))
        return self.in_run and self.size > COPIED_OUT_BYTES and has_buffer

    def __repr__(self) -> str:
        return f"<{self.number}: {type(self.item).__name__} of {self.size} bytes, {self.attempts} attempts>"


# ---- the model ----


class Model:
    """One queue, from its creation to its end."""

    def __init__(self, max_attempts: int, dead: list[Message]) -> None:
        self.max_attempts = max_attempts
        self.dead = dead  # in the dead-letter queue, which may outlive this one
        self.waiting: collections.deque[Message] = collections.deque()
        self.back_in_ring: list[Message] = []  # given back, by number
        self.back_in_arena: list[Message] = []
        self.shutdown = 0
        self.puts = 0
        self.gets = 0
        self.tasks = 0  # may fall below 0, when what was marked is then thrown away
        self.changed_lanes = False  # then the order of what was given back is nobody's promise
        self.unlinked = False

    @property
    def items(self) -> int:
        return len(self.waiting) + len(self.back_in_ring) + len(self.back_in_arena)

    @property
    def items_in_ring(self) -> int:
        """What maxsize bounds."""
        return len(self.waiting) + len(self.back_in_ring)

    @property
    def unfinished(self) -> int:
        return max(self.tasks, 0)

    def put(self, message: Message) -> None:
        self.waiting.append(message)
        self.puts += 1
        self.tasks += 1

    def candidates(self) -> list[Message]:
        """What may come out next: one, as long as the ring has not changed lanes."""
        if self.shutdown == 2:
            return []
        for back in (self.back_in_ring, self.back_in_arena):
            if back:
                return back if self.changed_lanes else back[:1]
        return [self.waiting[0]] if self.waiting else []

    def take(self, message: Message) -> None:
        for where in (self.back_in_ring, self.back_in_arena, self.waiting):
            if message in where:
                where.remove(message)
        message.attempts += 1

    def bury_the_worn_out(self) -> None:
        """Whoever takes next moves these away first."""
        while (found := self.candidates()) and self.max_attempts and found[0].attempts >= self.max_attempts:
            self.bury(found[0])

    def bury(self, message: Message) -> None:
        self.take(message)
        self.finish()
        self.mark_done()
        self.dead.append(message)
        reached["moved to the dead letters"] += 1

    def give_back(self, message: Message) -> None:
        if self.shutdown == 2:
            self.tasks -= 1
            return
        back = self.back_in_arena if message.in_run else self.back_in_ring
        back.append(message)
        back.sort(key=lambda each: each.number)

    def finish(self) -> None:
        self.gets += 1

    def mark_done(self) -> bool:
        if self.tasks <= 0:
            return False
        self.tasks -= 1
        return True

    def shut_down(self, immediate: bool) -> None:
        self.shutdown = max(self.shutdown, 2 if immediate else 1)
        if immediate:
            self.tasks -= self.items
            for where in (self.waiting, self.back_in_ring, self.back_in_arena):
                where.clear()

    def ends_with_the_last(self, life: str) -> bool:
        """Whether the queue is gone when nobody is attached any more."""
        if self.unlinked or life in ("auto_cleanup", "unnamed"):
            return True
        return life != "persistent" and (self.shutdown == 2 or self.items == 0)


# ---- the machine ----

some = st.integers(0, 7)  # which one of those that are there
sizes = st.sampled_from([0, 1, 30, 180, 300, 500, 1100, 3000, 5000, 9000, 30_000, 70_000, 200_000])
kinds = st.sampled_from(["plain", "plain", "bytes", "array", "unreadable"])
waits = st.sampled_from(["poll", "poll", "poll", "shortly"])
endings = st.sampled_from(["ack", "nack", "nack", "drop", "with", "error"])
rarely = st.sampled_from([False, False, False, True])

numbers = itertools.count()

#: How many steps were made, and how often what does not happen every time.
reached: collections.Counter[str] = collections.Counter()


def nothing_to_do() -> None:
    """A step that does nothing is none."""
    reached["steps"] -= 1


class Held:
    """A view, a lease or a reservation, with the handle that it pins."""

    def __init__(self, handle: int, thing: Any, message: Message, *, pins: bool, in_arena: bool) -> None:
        self.handle = handle
        self.thing = thing
        self.message = message
        self.pins = pins
        self.in_arena = in_arena


class QueueBesideItsModel(RuleBasedStateMachine):
    """Every rule does one thing to both.  After each of them, both are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[int, SageQueue[Any]] = {}
        self.views: list[Held] = []
        self.leases: list[Held] = []
        self.reservations: list[Held] = []
        self.model: Model | None = None
        self.dead: list[Message] = []
        self.references: list[tuple[Model, SageQueueRef]] = []
        self.scale: SageQueue[Any] | None = None
        self.poller = select.poll()
        self.polled: dict[int, int] = {}  # the handles whose descriptors are looked at, and these

    # -- the queue's life --

    @initialize(
        serializer=st.sampled_from(sorted(SERIALIZERS)),
        maxsize=st.sampled_from([0, 0, 1, 3, 10]),
        rooms=st.sampled_from([("4 KiB", 0), ("4 KiB", "256 KiB"), ("64 KiB", 0), ("64 KiB", "256 KiB"), ("1 MiB", "1 MiB")]),
        life=st.sampled_from(["unnamed", "named", "named", "persistent", "persistent", "auto_cleanup"]),
        max_attempts=st.sampled_from([0, 0, 0, 1, 2, 3]),
    )
    def begin(self, serializer: str, maxsize: int, rooms: tuple[Any, Any], life: str, max_attempts: int) -> None:
        reached["runs"] += 1
        self.name = None if life == "unnamed" else f"model-{os.getpid()}-{next(numbers)}"
        self.codec = serializer
        self.serializer = SERIALIZERS[serializer]
        self.maxsize = maxsize
        self.life = life
        self.max_attempts = max_attempts
        self.dead_letters = f"model-dead-{os.getpid()}-{next(numbers)}"
        if max_attempts:  # with so much room that the dead letters always fit
            rooms = ("4 MiB", "16 MiB")
        self.capacity, self.arena = rooms
        self.next_handle = itertools.count()
        self.next_message = itertools.count()
        self.scale = SageQueue[Any](capacity="16 MiB", arena=0, serializer=self.serializer)
        self.create()

    def create(self, mode: Any = "open_or_create") -> None:
        new = self.model is None or mode == "fresh"
        retries: dict[str, Any] = {}
        if self.max_attempts:
            retries = {"max_attempts": self.max_attempts, "dead_letter": self.dead_letters}
        q = SageQueue[Any](
            self.name,
            self.maxsize if new else 77,  # the queue's own sizes hold
            auto_cleanup=self.life == "auto_cleanup",
            persistent=self.life == "persistent",
            capacity=self.capacity if new else "2 MiB",
            arena=self.arena,
            serializer=self.serializer,
            mode=mode,
            **retries,
        )
        if new:
            self.model = Model(self.max_attempts, self.dead)
        self.adopt(q)
        if new:
            self.references = [(self.the_model, q.get_reference()), *self.references[:3]]

    def adopt(self, q: SageQueue[Any]) -> None:
        assert (q.maxsize, q.max_attempts) == (self.maxsize, self.max_attempts)
        info = _native.Info(q._handle)
        self.block_bytes = 4096
        self.arena_bytes = info.arena
        self.capacity_bytes = info.capacity
        self.max_message = info.max_message
        self.handles[next(self.next_handle)] = q

    @property
    def the_model(self) -> Model:
        assert self.model is not None
        return self.model

    @property
    def pins(self) -> list[Held]:
        return [held for held in [*self.views, *self.leases, *self.reservations] if held.pins]

    @property
    def attached(self) -> int:
        return len(set(self.handles) | {held.handle for held in self.pins})

    def pick(self, which: int) -> tuple[int, SageQueue[Any]]:
        key = sorted(self.handles)[which % len(self.handles)]
        return key, self.handles[key]

    def after_somebody_left(self) -> None:
        """If nobody is attached any more, the queue may be gone."""
        if self.model is not None and self.attached == 0 and self.model.ends_with_the_last(self.life):
            self.model = None
            reached["queues that ended"] += 1

    @rule(which=some, how=st.sampled_from(["name", "open", "create", "fresh"]))
    def open_by_name(self, which: int, how: Any) -> None:
        if len(self.handles) == 4 or self.name is None or (self.model is not None and self.model.unlinked):
            return nothing_to_do()  # where it was unlinked, another queue would get the name
        if how == "open" and self.model is None:
            with pytest.raises(sage_queue.QueueNotFound):
                SageQueue[Any](self.name, mode="open", serializer=self.serializer)
        elif how == "create" and self.model is not None:
            with pytest.raises(sage_queue.QueueExists):
                self.create("create")
        elif how == "fresh" and self.attached:
            with pytest.raises(sage_queue.QueueBusy):
                self.create("fresh")
        elif how == "open":
            self.note_reopening()
            self.adopt(SageQueue[Any](self.name, mode="open", serializer=self.serializer))
        else:
            self.note_reopening()
            self.create("open_or_create" if how == "name" else how)

    @rule(which=some, how=st.sampled_from(["itself", "pickle", "json", "queue"]))
    def open_by_reference(self, which: int, how: str) -> None:
        if len(self.handles) == 4:
            return nothing_to_do()
        model, reference = self.references[which % len(self.references)]
        own = self.serializer if self.codec == "own" else None
        if how == "queue" and self.handles:
            model, written = self.the_model, pickle.dumps(self.pick(which)[1])
        elif how == "json":
            written = pickle.dumps(SageQueueRef.from_json(reference.to_json()))
        else:
            written = pickle.dumps(reference)
        read = pickle.loads if how == "queue" and self.handles else lambda written: pickle.loads(written).get_queue(own)
        if model is self.model and not model.unlinked:
            self.note_reopening()
            self.adopt(read(written))
        else:
            with pytest.raises(sage_queue.QueueNotFound):
                read(written)

    def note_reopening(self) -> None:
        reached["reopened with items in it"] += not self.attached and self.model is not None and self.model.items > 0

    @precondition(lambda self: self.handles)
    @rule(which=some, how=st.sampled_from(["close", "twice", "with", "drop", "destroy"]), last_too=rarely)
    def close(self, which: int, how: str, last_too: bool) -> None:
        key, q = self.pick(which)
        if (len(self.handles) == 1 or how == "destroy") and not last_too:
            return nothing_to_do()
        if how == "drop" and any(held.handle == key for held in self.leases):
            return nothing_to_do()  # a lease keeps its queue open
        if how == "drop" and key in self.polled:
            how = "close"  # the thread that looks after it may have it in hand
        del self.handles[key]
        if key in self.polled:
            self.poller.unregister(self.polled.pop(key))
        if how == "drop":
            del q
        else:
            if how == "with":
                with q:
                    pass
            elif how == "destroy":
                q.destroy()
                self.the_model.unlinked = True
            else:
                q.close()
            if how == "twice":
                q.close()
            self.check_that_it_is_closed(q)
        self.end_what_was_leased_through(key)

    def check_that_it_is_closed(self, q: SageQueue[Any]) -> None:
        assert q.is_closed()
        item = make_item(self.codec, "plain", 0, 1)
        calls = (q.get_nowait, q.get, lambda: q.put(item), q.qsize, q.get_stats, q.task_done, q.join, q.shutdown, q.lease)
        for call in calls:
            with pytest.raises(QueueClosed):
                call()

    def end_what_was_leased_through(self, key: int) -> None:
        """The handle is closed: what was leased through it has gone back, and its lease says so."""
        for held in [held for held in self.leases if held.handle == key]:
            self.leases.remove(held)
            self.the_model.give_back(held.message)
            with pytest.raises(QueueClosed):
                held.thing.ack()
            reached["leases that a close ended"] += 1
        self.after_somebody_left()

    @precondition(lambda self: self.handles and self.life in ("named", "persistent"))
    @rule(how=st.sampled_from(["close", "drop", "with"]))
    def leave_and_come_back(self, how: str) -> None:
        """What is in it stays or goes, as its life has it, and so do the counts, the tasks and a shutdown."""
        self.let_go_of_everything()
        before = self.the_model
        while self.handles:
            self.close(0, how, True)
        if self.model is before:
            self.open_by_reference(0, "itself")
        elif self.name is not None:
            self.open_by_name(0, "name")

    @precondition(lambda self: not self.handles and self.name is None)
    @rule()
    def begin_anew_without_a_name(self) -> None:
        if self.model is not None:
            return nothing_to_do()  # a view keeps it
        self.create()

    @precondition(lambda self: self.handles)
    @rule(which=some, immediate=st.booleans(), really=rarely)
    def shut_down(self, which: int, immediate: bool, really: bool) -> None:
        if not really:
            return nothing_to_do()
        self.pick(which)[1].shutdown(immediate)
        self.the_model.shut_down(immediate)

    @precondition(lambda self: self.model is not None and self.model.shutdown and self.name is not None)
    @rule()
    def replace_what_was_shut_down(self) -> None:
        """Else the rest of the run would be rather quiet."""
        self.let_go_of_everything()
        while self.handles:
            self.close(0, "close", True)
        self.create("open_or_create" if self.model is None else "fresh")

    @rule(what=st.sampled_from(["collect", "list"]))
    def look_at_all_queues(self, what: str) -> None:
        if what == "collect":
            assert sage_queue.collect_garbage() == 0  # what is there has its reason
            return
        listed = [ref for ref in sage_queue.list_queues() if ref.name in (self.name, self.references[0][1].name)]
        exists = self.model is not None and not self.model.unlinked
        assert listed == [ref for model, ref in self.references if model is self.model and exists]

    # -- put --

    def message_of(self, item: Any) -> Message:
        """What will be put for the item; how large it is, is measured."""
        assert self.scale is not None
        before = self.scale.get_stats()["bytes_put"]
        self.scale.put(item)
        size = self.scale.get_stats()["bytes_put"] - before
        try:
            self.scale.get()
        except ValueError:
            assert isinstance(item, Unreadable)
        ring_limit = min(self.capacity_bytes // 8, 64 * 1024) if self.arena_bytes else self.max_message
        return Message(next(self.next_message), item, size, in_run=size > ring_limit)

    @property
    def is_held_up(self) -> bool:
        """Whether records that consumers have gone past stand in the ring: then a full one may change lanes."""
        return bool(self.the_model.back_in_ring) or any(not held.in_arena for held in self.leases)

    def must_have_room(self, *messages: Message) -> bool:
        model = self.the_model
        if self.maxsize and model.items_in_ring + len(messages) > self.maxsize:
            return False
        if self.is_held_up or model.changed_lanes:
            return False
        in_ring = [*(each for each in model.waiting if not each.in_run), *(each for each in messages if not each.in_run)]
        references = len(model.waiting) + len(messages)
        ring_is_half_empty = sum(each.size for each in in_ring) + 256 * references <= self.capacity_bytes // 2
        large = [each for each in messages if each.in_run]
        arena_takes_it = not large or (self.arena_in_use() == 0 and sum(map(self.run_bytes, large)) <= self.arena_bytes)
        return ring_is_half_empty and arena_takes_it

    def cannot_have_room(self, *messages: Message) -> bool:
        if self.maxsize and self.the_model.items_in_ring + len(messages) > self.maxsize:
            return True
        return self.arena_in_use() + sum(self.run_bytes(each) for each in messages if each.in_run) > self.arena_bytes

    def run_bytes(self, message: Message) -> int:
        return max(1, -(-message.size // self.block_bytes)) * self.block_bytes

    def arena_in_use(self) -> int:
        return sum(self.run_bytes(each) for each in self.in_runs())

    def in_runs(self) -> list[Message]:
        """Everything that occupies the arena."""
        model = self.the_model
        runs = [each for each in model.waiting if each.in_run]
        runs += model.back_in_arena
        runs += [held.message for held in [*self.views, *self.leases, *self.reservations] if held.in_arena]
        return runs

    @precondition(lambda self: self.handles)
    @rule(which=some, parcels=st.lists(st.tuples(kinds, sizes), min_size=1, max_size=6), wait=waits)
    def put(self, which: int, parcels: list[tuple[str, int]], wait: str) -> None:
        for kind, size in parcels:
            self.put_one(self.pick(which)[1], kind, size, wait)

    @precondition(lambda self: self.handles and self.capacity_bytes <= 64 * 1024 and not self.the_model.shutdown)
    @rule(which=some, with_a_lease=st.booleans())
    def put_until_it_is_full(self, which: int, with_a_lease: bool) -> None:
        """If somebody's lease is what makes it full, a put that is patient goes round it."""
        model, q = self.the_model, self.pick(which)[1]
        if with_a_lease:
            self.put_one(q, "plain", 100, "poll")
            self.lease(which, "poll", True)
        before = -1
        while before != model.puts:
            before = model.puts
            self.put_one(q, "plain", self.capacity_bytes // 12, "poll")
        if self.is_held_up:
            self.put_one(q, "plain", self.capacity_bytes // 12, "patiently")

    def put_one(self, q: SageQueue[Any], kind: str, size: int, wait: str) -> None:
        model = self.the_model
        message = self.message_of(make_item(self.codec, kind, next(self.next_message), size))
        block, timeout = wait != "poll", {"poll": None, "shortly": SHORTLY, "patiently": PATIENTLY}[wait]
        if message.size > self.max_message:
            with pytest.raises(MessageTooLarge):
                q.put(message.item, block, timeout)
            return
        if model.shutdown:
            with pytest.raises(ShutDown):
                q.put(message.item, block, timeout)
            return
        room = _native.has_room(q._handle, message.size)
        assert room or not self.must_have_room(message)
        assert not room or not self.cannot_have_room(message)
        if not room and self.is_held_up and self.max_attempts:
            return nothing_to_do()  # so that the order of what is given back stays known
        try:
            q.put(message.item, block, timeout)
        except Full as error:
            assert not room
            in_ring = "Queue is full" if wait == "poll" else "Put operation timed out"
            assert str(error) == in_ring or (message.in_run and str(error).startswith("Queue is full: no run of"))
            reached["full"] += 1
            with pytest.raises(ValueError, match="^Failed to serialize item"):
                q.put(threading.Lock(), block, timeout)
        else:
            if not room:  # the ring was full of what somebody holds, and for so long that the put went round it
                assert self.is_held_up
                self.changes_lanes()
            model.put(message)

    def changes_lanes(self) -> None:
        self.the_model.changed_lanes = True
        reached["puts that changed lanes"] += 1

    # -- get --

    def check_out(self, got: Any) -> Message:
        """Something came out: it must be what the model has next."""
        model = self.the_model
        model.bury_the_worn_out()
        for message in model.candidates():
            if same(got, message.item):
                model.take(message)
                return message
        raise AssertionError(f"{str(got)[:60]} came out, and next in the model is {model.candidates()[:3]}")

    def check_nothing_there(self, error: Exception, wait: str) -> None:
        model = self.the_model
        model.bury_the_worn_out()
        assert not model.candidates(), f"nothing came out, and next in the model is {model.candidates()[0]}"
        if model.shutdown:
            assert isinstance(error, ShutDown)
        else:
            assert isinstance(error, Empty)
            assert str(error) == ("Queue is empty" if wait == "poll" else "Get operation timed out")

    def check_unreadable(self, error: ValueError, *, leased: bool) -> None:
        model = self.the_model
        model.bury_the_worn_out()
        message = next(
            each
            for each in model.candidates()
            if not each.readable and str(error) == f"Failed to deserialize item: number {each.item.number} is unreadable"
        )
        model.take(message)
        reached["could not be decoded"] += 1
        if self.max_attempts:
            message.in_run = message.in_run or leased  # a lease moves into the arena, and there it stays
            model.give_back(message)
        else:
            model.finish()
            if leased:
                model.mark_done()

    @precondition(lambda self: self.handles)
    @rule(which=some, wait=waits, copy=st.booleans(), writable=st.booleans(), keep=st.booleans())
    def get(self, which: int, wait: str, copy: bool, writable: bool, keep: bool) -> None:
        key, q = self.pick(which)
        model = self.the_model
        block, timeout = wait != "poll", None if wait == "poll" else SHORTLY
        try:
            got = q.get(block, timeout, copy=copy, writable=writable)
        except (Empty, ShutDown) as error:
            self.check_nothing_there(error, wait)
            return
        except ValueError as error:
            self.check_unreadable(error, leased=False)
            return
        message = self.check_out(got)
        model.finish()
        if copy:
            return
        in_place = message.stays_in_place
        looked_at = got["array"] if isinstance(got, dict) else got
        if in_place and isinstance(looked_at, memoryview):
            assert looked_at.readonly == (not writable)
        elif in_place:
            assert looked_at.flags.writeable == writable
        if keep and len(self.views) < 6:
            if in_place and writable:
                looked_at[-1] = 99  # which nobody else sees
                own = looked_at.copy() if isinstance(looked_at, numpy.ndarray) else bytes(looked_at)
                message.item = {**got, "array": own} if isinstance(got, dict) else own
            self.views.append(Held(key, got, message, pins=in_place, in_arena=in_place))

    @precondition(lambda self: self.views)
    @rule(which=some)
    def drop_a_view(self, which: int) -> None:
        held = self.views.pop(which % len(self.views))
        assert same(held.thing, held.message.item)
        del held
        self.after_somebody_left()

    @precondition(lambda self: self.handles)
    @rule(which=some, wait=waits, copy=st.booleans())
    def lease(self, which: int, wait: str, copy: bool) -> None:
        key, q = self.pick(which)
        model = self.the_model
        if len(self.leases) == 6:
            return nothing_to_do()
        leased = q.get_stats()["leased"]
        block, timeout = wait != "poll", None if wait == "poll" else SHORTLY
        try:
            lease = q.lease(block, timeout, copy=copy)
        except (Empty, ShutDown) as error:
            self.check_nothing_there(error, wait)
            return
        except ValueError as error:
            self.check_unreadable(error, leased=True)
            return
        message = self.check_out(lease.value)
        assert lease.attempts == message.attempts
        in_arena = q.get_stats()["leased"] == leased + 1
        assert in_arena or not message.in_run  # it does not leave the arena
        assert in_arena or self.arena_bytes == 0 or self.arena_in_use() > 0  # else there was room for it
        message.in_run = in_arena
        pins = not copy and in_arena and message.size > COPIED_OUT_BYTES
        self.leases.append(Held(key, lease, message, pins=pins, in_arena=in_arena))

    @precondition(lambda self: self.handles)
    @rule(which=some, copy=st.booleans(), ways=st.lists(endings, min_size=1, max_size=4))
    def work_on_some(self, which: int, copy: bool, ways: list[str]) -> None:
        for how in ways:
            if not self.the_model.items:
                self.put_one(self.pick(which)[1], "plain", 30, "poll")
            there = len(self.leases)
            self.lease(which, "poll", copy)
            if len(self.leases) > there:
                self.end_a_lease(there, how)

    @precondition(lambda self: self.leases)
    @rule(which=some, how=endings)
    def end_a_lease(self, which: int, how: str) -> None:
        held = self.leases.pop(which % len(self.leases))
        lease, message = held.thing, held.message
        assert same(lease.value, message.item)
        if how == "drop":
            lease = held.thing = None
        elif how == "with":
            with lease:
                pass
        elif how == "error":
            with pytest.raises(ZeroDivisionError), lease:
                1 / 0
        else:
            getattr(lease, how)()
        if how in ("ack", "with"):
            self.the_model.finish()
            self.the_model.mark_done()
            assert same(lease.value, message.item)
        else:
            self.the_model.give_back(message)
            reached["given back"] += 1
        if lease is not None:
            with pytest.raises(ValueError, match="has ended"):
                lease.ack()
            if how in ("nack", "error"):
                with pytest.raises(ValueError, match="given back"):
                    lease.value

    # -- reserve --

    @precondition(lambda self: self.handles)
    @rule(which=some, size=sizes, array=st.booleans())
    def reserve(self, which: int, size: int, array: bool) -> None:
        key, q = self.pick(which)
        model = self.the_model
        if len(self.reservations) == 3:
            return nothing_to_do()
        in_place = self.codec in ("pickle", "cloudpickle")
        array = array and in_place  # else there is no message for it
        if not self.arena_bytes:
            with pytest.raises(ValueError, match="without an arena"):
                q.reserve(size)
            return
        number = next(self.next_message)
        item = make_item(self.codec, "bytes", number, size)
        if not isinstance(item, bytes):
            content = msgspec.msgpack.encode(item) if self.codec == "msgpack" else self.serializer.dumps(item)
        else:
            content = item
            item = numpy.frombuffer(content, "u1") if array else item
        size = len(content)
        try:
            made = q.reserve_array(size, "u1", timeout=SHORTLY) if array else q.reserve(size, timeout=SHORTLY)
        except ShutDown:
            assert model.shutdown
            return
        except MessageTooLarge:
            assert size + 4096 > self.max_message
            return
        except Full as error:
            assert str(error).startswith("Queue is full: no run of")
            assert self.arena_in_use() > 0
            return
        assert not model.shutdown
        made.target[:] = item if array else content
        assert made._open is not None
        message = Message(-1, item, memoryview(made._open[0]).nbytes, in_run=True)
        self.reservations.append(Held(key, made, message, pins=True, in_arena=True))

    @precondition(lambda self: self.reservations)
    @rule(which=some, how=st.sampled_from(["commit", "commit", "with", "abort", "drop", "error"]))
    def end_a_reservation(self, which: int, how: str) -> None:
        held = self.reservations.pop(which % len(self.reservations))
        made, message, model = held.thing, held.message, self.the_model
        held.thing = None
        if how in ("commit", "with"):
            ring_limit = min(self.capacity_bytes // 8, 64 * 1024)
            message.in_run = not (message.size <= ring_limit and message.size <= self.block_bytes // 2)
            closed = held.handle not in self.handles
            room = False if closed else _native.has_room(self.handles[held.handle]._handle, 0 if message.in_run else message.size)
            if not closed and not room and self.is_held_up and self.max_attempts:
                how = "abort"  # as in put()
        if how in ("commit", "with"):
            try:
                if how == "commit":
                    made.commit()
                else:
                    with made:
                        pass
            except Full:
                assert not room and not closed and not model.shutdown
            except ShutDown:
                assert model.shutdown and not closed
            except QueueClosed:
                assert closed
            else:
                assert not closed and not model.shutdown
                if not room:
                    assert self.is_held_up
                    self.changes_lanes()
                message.number = next(self.next_message)
                model.put(message)
        elif how == "abort":
            made.abort()
        elif how == "error":
            with pytest.raises(ZeroDivisionError), made:
                1 / 0
        if how != "drop":
            with pytest.raises(ValueError, match="the reservation is over"):
                made.commit()
        del made
        self.after_somebody_left()

    # -- several at once --

    @precondition(lambda self: self.handles)
    @rule(which=some, parcels=st.lists(st.tuples(kinds, sizes), max_size=8), wait=waits, of_ray=st.booleans())
    def put_several(self, which: int, parcels: list[tuple[str, int]], wait: str, of_ray: bool) -> None:
        q, model = self.pick(which)[1], self.the_model
        messages = [self.message_of(make_item(self.codec, kind, next(self.next_message), size)) for kind, size in parcels]
        if self.is_held_up and self.max_attempts:
            return nothing_to_do()  # as in put_one()
        items = [message.item for message in messages]
        largest = max((message.size for message in messages), default=0)
        in_ring = 512 * len(messages) + sum(message.size for message in messages if not message.in_run)
        in_arena = sum(self.run_bytes(message) for message in messages if message.in_run)
        too_many = bool(self.maxsize) and len(messages) > self.maxsize
        never = too_many or largest > self.max_message or in_arena > self.arena_bytes
        try:
            if of_ray:
                q.put_nowait_batch(items)
            else:
                q.put_many(iter(items), wait != "poll", None if wait == "poll" else SHORTLY)
        except MessageTooLarge:
            assert largest > self.max_message or not of_ray
            assert never or in_ring > self.capacity_bytes // 2
            reached["batches that can never fit"] += 1
        except Full:
            assert not self.must_have_room(*messages)
            assert not model.shutdown or never or in_ring > self.capacity_bytes // 2
            reached["batches that had no room"] += 1
        except ShutDown:
            assert model.shutdown
        else:
            assert not never and (not model.shutdown or not messages)
            assert self.is_held_up or not self.cannot_have_room(*messages)
            model.changed_lanes = model.changed_lanes or self.is_held_up  # perhaps
            for message in messages:
                model.put(message)
            reached["batches that were put"] += 1

    @precondition(lambda self: self.handles)
    @rule(which=some, which_one=st.integers(0, 8), parcels=st.lists(st.tuples(kinds, sizes), max_size=8))
    def put_several_of_which_one_cannot_be_serialized(
        self, which: int, which_one: int, parcels: list[tuple[str, int]]
    ) -> None:
        items = [make_item(self.codec, kind, next(self.next_message), size) for kind, size in parcels]
        items.insert(which_one, threading.Lock())
        with pytest.raises(ValueError, match="^Failed to serialize item"):
            self.pick(which)[1].put_many(items)

    def taken_together(self, most: int, most_bytes: int | None) -> list[Message]:
        """What a get of so many takes, before it looks into it.  Takes 64 at a time, and moves the worn out away."""
        model = self.the_model
        found: list[Message] = []
        left = self.arena_bytes + 100 * self.capacity_bytes if most_bytes is None else most_bytes
        while len(found) < most and (not found or left) and all(message.readable for message in found):
            asked = min(most - len(found), 64)
            taken: list[Message] = []
            left_for_them = left
            for message in [*model.back_in_ring, *model.back_in_arena, *model.waiting]:
                if message in found:
                    continue
                if len(taken) == asked or (taken and message.size > left_for_them):
                    break
                taken.append(message)
                left_for_them -= min(message.size, left_for_them)
            if not taken or model.shutdown == 2:
                break
            for message in taken:
                if self.max_attempts and message.attempts >= self.max_attempts:
                    model.bury(message)
                elif found and message.size > left:
                    return found
                else:
                    found.append(message)
                    left -= min(message.size, left)
            if len(taken) < asked and found:
                break
        return found

    def give_back_untouched(self, messages: list[Message]) -> None:
        for message in messages:
            self.the_model.take(message)
            message.attempts -= 1
            self.the_model.give_back(message)

    @precondition(lambda self: self.handles and not self.the_model.changed_lanes)
    @rule(
        which=some,
        most=st.sampled_from([None, 1, 2, 3, 5, 20, 100]),
        most_bytes=st.sampled_from([None, None, 0, 100, 5000, 100_000]),
        wait=waits,
        how=st.sampled_from(["get_many", "get_many", "get_nowait_batch", "drain"]),
    )
    def get_several(self, which: int, most: int | None, most_bytes: int | None, wait: str, how: str) -> None:
        q, model = self.pick(which)[1], self.the_model
        there = model.items
        exactly = how == "get_nowait_batch"
        if exactly:
            most, most_bytes, wait = most or 1, None, "poll"
            if 0 < there < most:
                with pytest.raises(Empty, match=f"^Cannot get {most} items from queue of size {there}"):
                    q.get_nowait_batch(most)
                return
        elif how == "drain":
            most, most_bytes, wait = there, None, "poll"
            if not there:
                assert q.drain() == []
                return
        calls = {
            "get_many": lambda: q.get_many(most, most_bytes, wait != "poll", None if wait == "poll" else SHORTLY),
            "get_nowait_batch": lambda: q.get_nowait_batch(most or 1),
            "drain": q.drain,
        }
        try:
            got = calls[how]()
        except (Empty, ShutDown) as error:
            taken = self.taken_together(most or 1024, most_bytes)
            if exactly and there:  # some had had their attempts, and without them there were not enough
                assert isinstance(error, ShutDown if model.shutdown and not taken else Empty) and len(taken) < (most or 0)
                self.give_back_untouched(taken)
            else:
                assert not taken
                self.check_nothing_there(error, wait)
            return
        except ValueError as error:
            taken = self.taken_together(most or 1024, most_bytes)
            failed = next(message for message in taken if not message.readable)
            assert failed is taken[0] or exactly
            assert f"number {failed.item.number} is unreadable" in str(error)
            model.take(failed)
            if self.max_attempts:
                model.give_back(failed)
            else:
                model.finish()
            self.give_back_untouched([message for message in taken if message is not failed])
            reached["could not be decoded"] += 1
            return
        taken = self.taken_together(most or 1024, most_bytes)
        readable = list(itertools.takewhile(lambda message: message.readable, taken))
        assert len(got) == len(readable) and (got or how == "drain")
        assert all(same(item, message.item) for item, message in zip(got, readable))
        for message in readable:
            model.take(message)
            model.finish()
        self.give_back_untouched(taken[len(readable) :])
        reached["batches that were got"] += 1

    @precondition(lambda self: self.handles and self.the_model.shutdown)
    @rule(which=some)
    def iterate_to_the_end(self, which: int) -> None:
        q, model = self.pick(which)[1], self.the_model
        ended = False
        while not ended:
            try:
                for got in q:
                    self.check_out(got)
                    model.finish()
                ended = True
            except ValueError as error:
                self.check_unreadable(error, leased=False)
        model.bury_the_worn_out()
        assert not model.candidates()
        reached["iterations to the end"] += 1

    # -- waiting, and tasks --

    @precondition(lambda self: self.handles)
    @rule(which=some)
    def look_at_its_descriptor(self, which: int) -> None:
        """From now on after each step."""
        key, q = self.pick(which)
        fd = q.fileno()
        assert self.polled.setdefault(key, fd) == fd
        self.poller.register(fd, select.POLLIN)
        ready = bool(self.the_model.items or self.the_model.shutdown)
        everybody = list(self.handles.values())
        assert sage_queue.wait(everybody, timeout=0) == (everybody if ready else [])

    @precondition(lambda self: self.handles)
    @rule(which=some)
    def task_done(self, which: int) -> None:
        q = self.pick(which)[1]
        if self.the_model.mark_done():
            q.task_done()
        else:
            with pytest.raises(ValueError, match="called too many times"):
                q.task_done()
            q.join()

    @precondition(lambda self: self.dead)
    @rule()
    def read_the_dead_letters(self) -> None:
        """They come in the order in which they were moved, each once."""
        with SageQueue[Any](self.dead_letters, mode="open", serializer=self.serializer) as letters:
            assert letters.qsize() == len(self.dead)
            for message in self.dead:
                if message.readable:
                    assert same(letters.get_nowait(), message.item)
                else:
                    with pytest.raises(ValueError, match=f"number {message.item.number} is unreadable"):
                        letters.get_nowait()
            assert letters.empty()
        self.dead.clear()
        with pytest.raises(sage_queue.QueueNotFound):
            sage_queue.open_queue(self.dead_letters, serializer=self.serializer)

    # -- after each step --

    @invariant()
    def both_say_the_same(self) -> None:
        reached["steps"] += 1
        for held in self.views:
            assert same(held.thing, held.message.item)
        if not self.handles:
            return
        model = self.the_model
        queues = list(self.handles.values())
        stats = queues[0].get_stats()
        arena = [held for held in self.leases if held.in_arena]
        assert {key: stats[key] for key in ("items", "unfinished", "puts", "gets", "shutdown", "participants", "recoveries")} == {
            "items": model.items,
            "unfinished": model.unfinished,
            "puts": model.puts,
            "gets": model.gets,
            "shutdown": model.shutdown,
            "participants": self.attached,
            "recoveries": 0,
        }
        assert (stats["held"], stats["leased"], stats["reserved"]) == (
            sum(held.in_arena for held in self.views),
            len(arena),
            len(self.reservations),
        )
        findings = _native.check_arena(queues[0]._handle)
        runs = findings.pop("runs")
        assert not any(findings.values()), findings
        # What a close gives back after a shutdown at once is nobody's, and lies there until somebody else gives something back.
        litter = model.shutdown == 2 and runs > len(self.in_runs())
        assert litter or (runs, stats["arena_used_bytes"]) == (len(self.in_runs()), self.arena_in_use())
        is_full = queues[0].full()
        for q in queues:
            assert (q.qsize(), q.empty(), q.full()) == (model.items, model.items == 0, is_full)
        if self.maxsize and model.items_in_ring >= self.maxsize and not model.shutdown:
            assert is_full
        if self.arena_in_use() == model.items == model.shutdown == 0 and not self.is_held_up and not model.changed_lanes:
            assert not is_full

        readable = {fd for fd, _ in self.poller.poll(0)} if self.polled else set()
        assert readable == (set(self.polled.values()) if model.items or model.shutdown else set())

    # -- the end --

    def let_go_of_everything(self) -> None:
        while self.reservations:
            self.end_a_reservation(0, "abort")
        while self.leases:
            self.end_a_lease(0, "nack")
        while self.views:
            self.drop_a_view(0)

    def teardown(self) -> None:
        if self.scale is not None:
            self.scale.close()
        self.views.clear()
        self.leases.clear()
        self.reservations.clear()
        for q in self.handles.values():
            q.close()
        self.handles.clear()
        if self.name is not None:
            sage_queue.destroy_queue(self.name)
        sage_queue.destroy_queue(self.dead_letters)


def test_a_queue_and_its_model_say_the_same_whatever_is_called() -> None:
    wanted = STEPS or SHORT_STEPS
    settings = hypothesis.settings(
        max_examples=wanted // STEPS_OF_ONE_RUN + 1,
        stateful_step_count=STEPS_OF_ONE_RUN,
        deadline=None,
        database=None,
        derandomize=not STEPS,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    if STEPS:
        faulthandler.cancel_dump_traceback_later()
    reached.clear()
    start = time.monotonic()
    while reached["steps"] - reached["runs"] < wanted:
        run_state_machine_as_test(QueueBesideItsModel, settings=settings)
    print(f"{reached['steps'] - reached['runs']} steps in {time.monotonic() - start:.0f} s; {dict(reached)}")
