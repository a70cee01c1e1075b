"""Messages a second from producers to consumers, confirmed at the consumers, and the CPU time a message costs.

Two phases on the same queue, with the same processes:

proof   Every message is `(producer, sequence, payload)`.  The consumers check the payload and each producer's order; afterwards the
        totals must show that nothing was lost and nothing came twice.  It warms the queue up and tells how many messages to time.
timed   The message itself, over and over.  Producers note when they start, consumers when they have taken their last; the clock runs
        from the first start to the last end.  The totals must agree here, too.

A producer ends a phase with one end mark per consumer.  A consumer leaves after as many marks as there are producers: each mark comes
after everything that its producer put, so nothing is left when all marks are taken.
"""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.connection import wait
from typing import Any

from .peers import CONTEXT, Peer

END = None  # no message is None

#: The size of the proof: whichever is reached first.
PROOF_MESSAGES = 20_000
PROOF_BYTES = 64 << 20


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
        started_ns = min(report.started_ns for report in self.sent)
        ended_ns = max(report.ended_ns for report in self.received)
        return (ended_ns - started_ns) * 1e-9

    def messages(self) -> int:
        return sum(report.messages for report in self.received)

    def cpu_seconds(self) -> float:
        return sum(report.cpu_ns for reports in (self.sent, self.received) for report in reports) * 1e-9

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

    def __init__(self, peer: Peer, message: Any, producers: int, consumers: int, seconds: float) -> None:
        self.peer = peer
        self.message = message
        self.producers = producers
        self.consumers = consumers
        self.seconds = seconds
        self.proof = Phase(producers, consumers)
        self.timed = Phase(producers, consumers)
        size = len(message) if isinstance(message, bytes) else 64
        self.proof.share.value = min(PROOF_MESSAGES, PROOF_BYTES // size) // producers
        self.all_ready = CONTEXT.Barrier(producers + consumers)
        self.all_proved = CONTEXT.Barrier(producers + consumers, action=self._plan)

    def _plan(self) -> None:
        """Choose how many messages to time, by how long the proof took."""
        expected = self.proof.messages() / self.proof.seconds() * self.seconds
        self.timed.share.value = max(int(expected) // self.producers, self.proof.share.value)

    def produce(self, me: int) -> None:
        self.all_ready.wait()
        with _timing(self.proof.sent[me]) as report:
            self._put_numbered(me, self.proof.share.value, report)
            self._put_end_marks()
        self.all_proved.wait()
        with _timing(self.timed.sent[me]) as report:
            report.messages = self.timed.share.value
            put, message = self.peer.put, self.message
            for _ in repeat(None, self.timed.share.value):
                put(message)
            self._put_end_marks()
            self.peer.close()

    def consume(self, me: int) -> None:
        self.all_ready.wait()
        with _timing(self.proof.received[me]) as report:
            self._get_numbered(report)
        self.all_proved.wait()
        with _timing(self.timed.received[me]) as report:
            count, get = 0, self.peer.get
            for _ in range(self.producers):
                while get() is not END:
                    count += 1
            report.messages = count
        self.peer.close()

    def _put_numbered(self, me: int, share: int, report: Report) -> None:
        for sequence in range(share):
            self.peer.put((me, sequence, self.message))
            report.fingerprint += _fingerprint(me, sequence)
        report.messages = share

    def _get_numbered(self, report: Report) -> None:
        last = [-1] * self.producers
        for _ in range(self.producers):
            while (item := self.peer.get()) is not END:
                producer, sequence, payload = item
                report.messages += 1
                report.fingerprint += _fingerprint(producer, sequence)
                report.out_of_order += sequence <= last[producer]
                report.damaged += payload != self.message
                last[producer] = sequence

    def _put_end_marks(self) -> None:
        for _ in range(self.consumers):
            self.peer.put(END)


def _fingerprint(producer: int, sequence: int) -> int:
    return (producer * PROOF_MESSAGES + sequence + 1) ** 2


def _cpu_ns() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)  # all threads
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


@contextmanager
def _timing(report: Report) -> Iterator[Report]:
    cpu_ns = _cpu_ns()
    report.started_ns = time.monotonic_ns()
    yield report
    report.ended_ns = time.monotonic_ns()
    report.cpu_ns = _cpu_ns() - cpu_ns


def measure(
    new_peer: Callable[[], Peer], message: Any, producers: int, consumers: int, seconds: float
) -> dict[str, float]:
    run = Run(new_peer(), message, producers, consumers, seconds)
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
