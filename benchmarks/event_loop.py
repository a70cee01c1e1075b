"""asyncio: what waiting in coroutines costs beside waiting in calls.

latency  Two processes, one message at a time, at once or at a pace.  A message carries the time at which it was put (the clock is
         the same in all processes), so the one way is known, not only both.  At a pace of 2 ms whoever waits has really gone to
         sleep.  Both processes use coroutines, or both plain calls.
tasks    One producer; in the consuming process many tasks, all of which wait in get_async().  Two phases, as in `throughput`.
idle     The CPU time of a process while its tasks wait; at the end each gets one message.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from .peers import CONTEXT, Peer
from .pingpong import bind_to_core
from .throughput import Report, Run, figures, timing
from .watchdog import Figures

END = None

WARM_UP_ROUNDS = 100


# ---- latency ----


class Latencies:
    """Of one conversation, in the order in which it went on."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._next_s = time.monotonic()
        self.both_ways_ns: list[int] = []
        self.one_way_ns: list[int] = []

    def pause_s(self) -> float:
        """How long to sleep before the next message, to put one each `pause_s`."""
        now_s = time.monotonic()
        self._next_s = max(self._next_s + self._pause_s, now_s)
        return self._next_s - now_s

    def note(self, put_ns: int, there_ns: int, back_ns: int) -> None:
        """`there_ns` is when the other one had it, `back_ns` when its answer was here."""
        self.both_ways_ns.append(back_ns - put_ns)
        self.one_way_ns.append(there_ns - put_ns)

    def figures(self) -> Figures:
        answer = {}
        for prefix, durations_ns in (("", sorted(self.both_ways_ns)), ("one_way_", sorted(self.one_way_ns))):
            answer[f"{prefix}p50_us"] = durations_ns[len(durations_ns) // 2] / 1e3
            answer[f"{prefix}p99_us"] = durations_ns[len(durations_ns) * 99 // 100] / 1e3
        return answer


def _echo(there: Peer, back: Peer) -> None:
    rounds = 0
    while there.get() is not END:
        back.put(time.monotonic_ns())
        rounds += 1
        if rounds == WARM_UP_ROUNDS:
            bind_to_core(1)
    there.close()
    back.close()


async def _echo_async(there: Peer, back: Peer) -> None:
    rounds = 0
    while await there.get_async() is not END:
        await back.put_async(time.monotonic_ns())
        rounds += 1
        if rounds == WARM_UP_ROUNDS:
            bind_to_core(1)
    there.close()
    back.close()


def _converse(there: Peer, back: Peer, rounds: int, pause_s: float) -> Latencies:
    found = Latencies(pause_s)
    for _ in range(rounds):
        if pause_s:
            time.sleep(found.pause_s())
        put_ns = time.monotonic_ns()
        there.put(put_ns)
        there_ns = back.get()
        found.note(put_ns, there_ns, time.monotonic_ns())
    return found


async def _converse_async(there: Peer, back: Peer, rounds: int, pause_s: float) -> Latencies:
    found = Latencies(pause_s)
    for _ in range(rounds):
        if pause_s:
            await asyncio.sleep(found.pause_s())
        put_ns = time.monotonic_ns()
        await there.put_async(put_ns)
        there_ns = await back.get_async()
        found.note(put_ns, there_ns, time.monotonic_ns())
    return found


def latency_of_calls(new_peer: Callable[[], Peer], rounds: int, pause_s: float) -> Figures:
    there, back = new_peer(), new_peer()
    echo = CONTEXT.Process(target=_echo, args=(there, back))
    echo.start()
    _converse(there, back, WARM_UP_ROUNDS, 0)
    bind_to_core(0)
    found = _converse(there, back, rounds, pause_s)
    there.put(END)
    there.close()
    back.close()
    echo.join()
    return found.figures()


def latency_of_coroutines(new_peer: Callable[[], Peer], rounds: int, pause_s: float) -> Figures:
    there, back = new_peer(), new_peer()
    echo = CONTEXT.Process(target=lambda: asyncio.run(_echo_async(there, back)))
    echo.start()

    async def converse() -> Latencies:
        await _converse_async(there, back, WARM_UP_ROUNDS, 0)
        bind_to_core(0)
        found = await _converse_async(there, back, rounds, pause_s)
        await there.put_async(END)
        there.close()
        back.close()
        return found

    found = asyncio.run(converse())
    echo.join()
    return found.figures()


# ---- tasks ----


class TasksRun(Run):
    """One consumer, whose tasks all wait in get_async()."""

    def __init__(self, peer: Peer, message: Any, seconds: float, tasks: int) -> None:
        super().__init__(peer, message, 1, 1, seconds)
        self.tasks = tasks

    def consume(self, me: int) -> None:
        asyncio.run(self._consume(me))

    async def _consume(self, me: int) -> None:
        proof, timed = Numbered(self, self.proof.received[me]), Counted(self, self.timed.received[me])
        await proof.begin()
        self.all_ready.wait()
        with timing(proof.report):
            await proof.ended.wait()
        await proof.finish()

        await timed.begin()
        self.all_proved.wait()
        with timing(timed.report):
            await timed.ended.wait()
        await timed.finish()
        self.peer.close()


class Tasks:
    """The tasks of one phase.

    The one that takes the end mark ends the phase.  Whatever was put before the mark was taken before it; but a task that has been
    given such a message may not have gone on yet.  If cancelling that task gives the message back to the queue, it is found there.
    """

    def __init__(self, run: TasksRun, report: Report) -> None:
        self.run = run
        self.report = report
        self.ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Return when all of them wait."""
        self._tasks = [asyncio.create_task(self._take_and_tell()) for _ in range(self.run.tasks)]
        await asyncio.sleep(0)

    async def _take_and_tell(self) -> None:
        try:
            await self.take()
        finally:
            self.ended.set()

    async def finish(self) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        for item in self.run.peer.drain():
            self.found(item)

    async def take(self) -> None:
        """What one task does, until it meets the end mark."""
        raise NotImplementedError

    def found(self, item: Any) -> None:
        """Count what no task has."""
        raise NotImplementedError


class Numbered(Tasks):
    async def take(self) -> None:
        last = [-1]  # each task's messages are in order, whatever the other tasks do
        while (item := await self.run.peer.get_async()) is not END:
            self.run.check(item, last, self.report)

    def found(self, item: Any) -> None:
        self.run.check(item, [-1], self.report)


class Counted(Tasks):
    async def take(self) -> None:
        count, get_async = 0, self.run.peer.get_async
        try:
            while await get_async() is not END:
                count += 1
        finally:
            self.report.messages += count

    def found(self, item: Any) -> None:
        self.report.messages += 1


def tasks(new_peer: Callable[[], Peer], message: Any, seconds: float, number: int) -> Figures:
    return figures(TasksRun(new_peer(), message, seconds, number))


# ---- idle ----


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)  # all threads
    return usage.ru_utime + usage.ru_stime


async def _wait_in_tasks(peer: Peer, number: int, seconds: float, sender: Connection) -> None:
    async def take(get_async: Callable[[], Awaitable[Any]]) -> Any:
        return await get_async()

    await take(peer.get_async)  # warm up
    waiting = [asyncio.create_task(take(peer.get_async)) for _ in range(number)]
    await asyncio.sleep(0)
    start_s, start_cpu_s = time.monotonic(), _cpu_s()
    await asyncio.sleep(seconds)
    used = (_cpu_s() - start_cpu_s) / (time.monotonic() - start_s)
    sender.send({"idle_tasks_cpu_percent": used * 100})
    got = await asyncio.gather(*waiting)
    if sorted(got) != list(range(number)):
        raise AssertionError(f"{number} items were put, {len(set(got))} different ones arrived")
    peer.close()


def idle(new_peer: Callable[[], Peer], number: int, seconds: float) -> Figures:
    peer = new_peer()
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=lambda: asyncio.run(_wait_in_tasks(peer, number, seconds, sender)))
    process.start()
    peer.put("warm up")
    answer: Figures = receiver.recv()
    for item in range(number):
        peer.put(item)
    peer.close()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the waiting process ended with {process.exitcode}")
    return answer
