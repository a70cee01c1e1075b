"""Messages a second from producers to consumers, confirmed at the consumers, and the CPU time a message costs.

Two phases on the same queue, with the same processes:

proof   Every message carries its producer and a sequence.  The consumers check the payload and each producer's order; afterwards
        the totals must show that nothing was lost and nothing came twice.  It warms the queue up and tells how many messages to time.
timed   The message itself, over and over.  Producers note when they start, consumers when they have taken their last; the clock runs
        from the first start to the last end.  The totals must agree here, too.

A producer ends a phase with one end mark per consumer.  A consumer leaves after as many marks as there are producers: each mark comes
after everything that its producer put, so nothing is left when all marks are taken.

The workers put and get one by one, or several at once (Way).  A batch could take another consumer's mark along, so there is only one
consumer then.  In its timed phase it does not look for marks, which would cost a comparison for each message; it counts, and looks at
the last message only.
"""

from __future__ import annotations

import copy
import ctypes
import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, repeat
from multiprocessing.connection import wait
from typing import Any

from .peers import BATCH, CONTEXT, Peer

END = None  # no message is None
RAW_END = b"end"  # nor this, nor shorter than that

#: The size of the proof: whichever is reached first.
PROOF_MESSAGES = 20_000
PROOF_BYTES = 64 << 20

#: How many different objects are put, where that matters: more than any queue collects to pickle them as one.
VARIETY = 10_000

_NUMBERS = struct.Struct("=HI")  # producer, sequence: at the start of a message of bytes


@dataclass(frozen=True)
class Way:
    """How the workers use the queue."""

    raw: bool = False  #: the queue carries bytes and nothing else
    put_many: bool = False  #: BATCH messages a call; else one
    get_many: bool = False  #: up to BATCH messages a call; else one
    #: Put VARIETY equal objects in turn, and not one again and again: whoever pickles a list would pickle that one only once.
    distinct: bool = False


SINGLY = Way()


class Report(ctypes.Structure):
    """What one worker has done in one phase.  Lies in memory that all workers and the measuring process share."""

    _fields_ = [
        ("started_ns", ctypes.c_int64),
        ("ended_ns", ctypes.c_int64),
        ("cpu_ns", ctypes.c_int64),
        ("messages", ctypes.c_int64),
        ("fingerprint", ctypes.c_uint64),  # of the numbers of the messages: tells "one lost, another twice" from "all there"
        ("out_of_order", ctypes.c_int64),
        ("damaged", ctypes.c_int64),
    ]


class Phase:
    """How many messages each producer is to put, and what became of them."""

    def __init__(self, producers: int, consumers: int) -> None:
        self.share = CONTEXT.RawValue(ctypes.c_int64)
        self.sent = CONTEXT.RawArray(Report, producers)
        self.received = CONTEXT.RawArray(Report, consumers)

    def seconds(self) -> float:
        started_ns: int = min(report.started_ns for report in self.sent)
        ended_ns: int = max(report.ended_ns for report in self.received)
        return (ended_ns - started_ns) * 1e-9

    def messages(self) -> int:
        return sum(report.messages for report in self.received)

    def cpu_seconds(self) -> float:
        return float(sum(report.cpu_ns for reports in (self.sent, self.received) for report in reports)) * 1e-9

    def check(self) -> None:
        for count in ("messages", "fingerprint"):
            put = sum(getattr(report, count) for report in self.sent)
            got = sum(getattr(report, count) for report in self.received)
            if put != got:
                raise AssertionError(f"{count}: {put} put, {got} got")
        for fault in ("out_of_order", "damaged"):
            faults = sum(getattr(report, fault) for report in self.received)
            if faults:
                raise AssertionError(f"{faults} messages {fault}")


class Run:
    """One queue, its producers and consumers, and the two phases they go through together."""

    def __init__(self, peer: Peer, message: Any, producers: int, consumers: int, seconds: float, way: Way = SINGLY) -> None:
        assert consumers == 1 or not way.get_many
        self.peer = peer
        self.message = message
        self.producers = producers
        self.consumers = consumers
        self.seconds = seconds
        self.way = way
        self.end = RAW_END if way.raw else END
        self.proof = Phase(producers, consumers)
        self.timed = Phase(producers, consumers)
        size = len(message) if isinstance(message, bytes) else 64
        self.proof.share.value = _whole_batches(min(PROOF_MESSAGES, PROOF_BYTES // size) // producers)
        self.all_ready = CONTEXT.Barrier(producers + consumers)
        self.all_proved = CONTEXT.Barrier(producers + consumers, action=self._plan)

    def _plan(self) -> None:
        """Choose how many messages to time, by how long the proof took."""
        expected = self.proof.messages() / self.proof.seconds() * self.seconds
        self.timed.share.value = max(_whole_batches(int(expected) // self.producers), self.proof.share.value)

    # ---- what a producer does ----

    def produce(self, me: int) -> None:
        messages = [copy.deepcopy(self.message) for _ in range(VARIETY if self.way.distinct else BATCH)]
        self.all_ready.wait()
        with timing(self.proof.sent[me]) as report:
            self._put_numbered(me, self.proof.share.value, report)
            self._put_end_marks()
        self.all_proved.wait()
        with timing(self.timed.sent[me]) as report:
            report.messages = self.timed.share.value
            self._put_again_and_again(messages, self.timed.share.value)
            self._put_end_marks()
            self.peer.close()

    def _put_numbered(self, me: int, share: int, report: Report) -> None:
        numbered = (self.numbered(me, sequence) for sequence in range(share))
        if self.way.put_many:
            while batch := list(islice(numbered, BATCH)):
                self.peer.put_many(batch)
        else:
            for item in numbered:
                self.peer.put(item)
        report.fingerprint = sum(_fingerprint(me, sequence) for sequence in range(share))
        report.messages = share

    def _put_again_and_again(self, messages: list[Any], share: int) -> None:
        if self.way.put_many:
            put_many = self.peer.put_many
            batches = [messages[start : start + BATCH] for start in range(0, len(messages), BATCH)]
            for batch in islice(cycle(batches), share // BATCH):
                put_many(batch)
        else:
            put = self.peer.put
            items: Iterable[Any] = islice(cycle(messages), share) if self.way.distinct else repeat(self.message, share)
            for item in items:
                put(item)

    def _put_end_marks(self) -> None:
        if self.way.put_many:
            self.peer.put_many([self.end])
        else:
            self.peer.put_marks(self.end, self.consumers)

    # ---- what a consumer does ----

    def consume(self, me: int) -> None:
        self.all_ready.wait()
        with timing(self.proof.received[me]) as report:
            self._get_numbered(report)
        self.all_proved.wait()
        with timing(self.timed.received[me]) as report:
            report.messages = self._get_many() if self.way.get_many else self._get_singly()
        self.peer.close()

    def _get_numbered(self, report: Report) -> None:
        last = [-1] * self.producers
        marks = 0
        while marks < self.producers:
            items = self.peer.get_many() if self.way.get_many else [self.peer.get()]
            for item in items:
                if item == self.end:
                    marks += 1
                else:
                    self.check(item, last, report)

    def _get_singly(self) -> int:
        count, get, end = 0, self.peer.get, self.end
        for _ in range(self.producers):
            if end is None:
                while get() is not None:
                    count += 1
            else:
                while get() != end:
                    count += 1
        return count

    def _get_many(self) -> int:
        count, get_many = 0, self.peer.get_many
        expected = self.producers * (self.timed.share.value + 1)  # with the marks
        items: list[Any] = []
        while count < expected:
            items = get_many()
            count += len(items)
        if items[-1] != self.end:
            raise AssertionError("the last of all messages is no end mark")
        return count - self.producers

    # ---- the numbers in the proof's messages ----

    def numbered(self, producer: int, sequence: int) -> Any:
        if self.way.raw:
            return _NUMBERS.pack(producer, sequence) + self.message[_NUMBERS.size :]
        return producer, sequence, self.message

    def check(self, item: Any, last: list[int], report: Report) -> None:
        """Count a message.  `last` holds the last sequence of each producer."""
        producer, sequence = _NUMBERS.unpack_from(item) if self.way.raw else item[:2]
        report.messages += 1
        report.fingerprint += _fingerprint(producer, sequence)
        report.out_of_order += sequence <= last[producer]
        report.damaged += item != self.numbered(producer, sequence)
        last[producer] = sequence


def _fingerprint(producer: int, sequence: int) -> int:
    return (producer * PROOF_MESSAGES + sequence + 1) ** 2


def _whole_batches(messages: int) -> int:
    """A multiple of BATCH, so that all batches are full."""
    return max(messages // BATCH, 1) * BATCH


def _cpu_ns() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)  # all threads
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


@contextmanager
def timing(report: Report) -> Iterator[Report]:
    cpu_ns = _cpu_ns()
    report.started_ns = time.monotonic_ns()
    yield report
    report.ended_ns = time.monotonic_ns()
    report.cpu_ns = _cpu_ns() - cpu_ns


def measure(
    new_peer: Callable[[], Peer], message: Any, producers: int, consumers: int, seconds: float, way: Way = SINGLY
) -> dict[str, float]:
    return figures(Run(new_peer(), message, producers, consumers, seconds, way))


def figures(run: Run) -> dict[str, float]:
    """Let a run happen."""
    producers, consumers = run.producers, run.consumers
    workers = [CONTEXT.Process(target=run.produce, args=(me,)) for me in range(producers)]
    workers += [CONTEXT.Process(target=run.consume, args=(me,)) for me in range(consumers)]
    for worker in workers:
        worker.start()
    _join(workers)
    run.peer.close()
    run.proof.check()
    run.timed.check()
    messages = run.timed.messages()
    return {
        "messages_per_s": messages / run.timed.seconds(),
        "cpu_us_per_message": run.timed.cpu_seconds() / messages * 1e6,
        "messages": messages,
        "seconds": run.timed.seconds(),
    }


def _join(workers: list[Any]) -> None:
    """Wait for all of them, but not for those that would wait for one that failed."""
    running = {worker.sentinel: worker for worker in workers}
    while running:
        for sentinel in wait(list(running)):
            worker = running.pop(sentinel)
            worker.join()
            if worker.exitcode:
                raise RuntimeError(f"a worker ended with {worker.exitcode}")
