"""Signals: a waiting call reacts at once, and whatever a handler raises, no message is lost or comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """Tests set handlers of their own."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def soon(number: int, after: float = 0.05) -> threading.Timer:
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    return timer


@pytest.mark.parametrize("call", ["get", "get with timeout", "put", "join"])
def test_ctrl_c_ends_a_waiting_call_at_once_and_changes_nothing(call: str) -> None:
    with SageQueue[int](maxsize=1) as q:
        if call in ("put", "join"):
            q.put(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        timer = soon(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            {"get": q.get, "get with timeout": lambda: q.get(timeout=60), "put": lambda: q.put(2), "join": q.join}[call]()
        timer.join()
        assert q.qsize() == (1 if call in ("put", "join") else 0)
        if call.startswith("get"):
            q.put(1)
        assert q.get() == 1
        with pytest.raises(sage_queue.Empty):
            q.get_nowait()


@pytest.mark.parametrize("around_s", [0.0, 0.0001, 0.05, 0.1], ids=str)
def test_a_signal_is_noticed_at_whatever_moment_of_waiting_it_comes(around_s: float) -> None:
    """Also while the call is not asleep: just before it goes to sleep, and when it wakes up to look for the dead."""

    def alarm(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with SageQueue[str]() as q:
            for attempt in range(30):
                rescue = threading.Timer(5, q.put, ("nobody noticed",))
                rescue.start()
                with pytest.raises(TimeoutError):
                    signal.setitimer(signal.ITIMER_REAL, around_s + 0.00002 * (attempt + 1))
                    q.get()
                rescue.cancel()
                rescue.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_raises_nothing_runs_and_the_call_goes_on_waiting() -> None:
    ran: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: ran.append(number))
    with SageQueue[int](maxsize=1) as q:
        timers = [soon(signal.SIGUSR1, 0.02 * (n + 1)) for n in range(5)]
        start = time.monotonic()
        with pytest.raises(sage_queue.Empty):
            q.get(timeout=0.3)
        assert time.monotonic() - start >= 0.3  # and the deadline stays what it was
        for timer in timers:
            timer.join()
        assert len(ran) == 5
        later = threading.Timer(0.1, q.put, (1,))
        later.start()
        also = soon(signal.SIGUSR1)
        assert q.get() == 1
        later.join()
        also.join()
        assert len(ran) == 6


def test_a_handler_may_use_the_queue_it_interrupts() -> None:
    with SageQueue[Any]() as q:
        signal.signal(signal.SIGUSR1, lambda number, frame: q.put("from the handler"))
        timer = soon(signal.SIGUSR1)
        assert q.get() == "from the handler"
        timer.join()


def test_a_handler_may_close_the_queue_it_interrupts() -> None:
    q = SageQueue[Any]()
    signal.signal(signal.SIGUSR1, lambda number, frame: q.close())
    timer = soon(signal.SIGUSR1)
    with pytest.raises(sage_queue.QueueClosed):
        q.get()
    timer.join()


class Interrupting:
    """Its unpickling is interrupted as often as asked, then succeeds."""

    left = 0
    error: type[BaseException] = KeyboardInterrupt

    def __reduce__(self) -> Any:
        return _interrupt, ()


def _interrupt() -> str:
    if Interrupting.left:
        Interrupting.left -= 1
        raise Interrupting.error
    return "whole"


@pytest.mark.parametrize("padding", [b"", b"x" * 100_000], ids=["copied", "in place"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_a_message_whose_decoding_is_interrupted_goes_back_to_its_place(padding: bytes, error: type[BaseException]) -> None:
    with SageQueue[Any]() as q:
        Interrupting.left, Interrupting.error = 3, error
        q.put((padding, Interrupting()))
        q.put("after")
        for _ in range(3):
            with pytest.raises(error):
                q.get()
            assert q.qsize() == 2
        assert q.get() == (padding, "whole")
        assert q.get() == "after"
        assert q.empty()


class Alarmed:
    """An alarm goes off while it is pickled or unpickled."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __getstate__(self) -> dict[str, str]:
        if self.when == "put":
            self.when = "never"
            signal.raise_signal(signal.SIGUSR2)
        return {"when": self.when}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.when = state["when"]
        if self.when == "get" and Alarmed.armed:
            Alarmed.armed = False
            signal.raise_signal(signal.SIGUSR2)

    armed = True


def test_an_alarm_that_goes_off_while_an_item_is_serialized_is_not_the_items_fault() -> None:
    def alarm(number: int, frame: Any) -> None:
        raise TimeoutError("time is up")

    signal.signal(signal.SIGUSR2, alarm)
    with SageQueue[Any]() as q:
        with pytest.raises(TimeoutError, match="time is up"):
            q.put(Alarmed("put"))
        assert q.empty()
        Alarmed.armed = True
        q.put(Alarmed("get"))
        with pytest.raises(TimeoutError, match="time is up"):
            q.get()
        assert q.qsize() == 1
        assert isinstance(q.get(), Alarmed)


# ---- the storm ----


# A program that is hit by SIGINT thousands of times, at whatever instruction it happens to be at.  Each time that it is inside
# body(), a KeyboardInterrupt is raised there; elsewhere the program could not catch it, and tells nothing about queues.
STORM = """
import os, random, signal, sys, time
from sage_queue import SageQueue, ShutDown

hits = 0

def interrupt(number, frame):
    global hits
    while frame is not None:
        if frame.f_code is body.__code__:
            hits += 1
            raise KeyboardInterrupt
        frame = frame.f_back

def start_storm():
    victim = os.getpid()
    signal.signal(signal.SIGINT, interrupt)
    cloud = os.fork()
    while cloud == 0:
        time.sleep(random.random() * 0.0004)
        if os.getppid() != victim:
            os._exit(0)
        os.kill(victim, signal.SIGINT)
    return cloud

def end_storm(cloud):
    os.kill(cloud, signal.SIGKILL)
    os.waitpid(cloud, 0)
    print(hits)
"""

# Messages are taken in a way that has no gap of its own between get() and the list.  `item = q.get()` has none since Python 3.11; in
# 3.10 every call has one behind it, in the caller, so there the interpreter's C code makes the call.
CONSUMER = """
def body():
    append = seen.append
    if sys.version_info >= (3, 11):
        while True:
            item = q.get()
            append(item[0])
    for item in iter(q.get, None):
        append(item[0])

q, seen, done = SageQueue(sys.argv[1]), [], False
cloud = start_storm()
while not done:
    try:
        body()
    except KeyboardInterrupt:
        pass
    except ShutDown:
        done = True
end_storm(cloud)
print(seen == list(range(int(sys.argv[2]))))
"""

PRODUCER = """
def body():
    global number
    while number < count:
        q.put(number)
        number += 1

q, number, count = SageQueue(sys.argv[1]), 0, int(sys.argv[2])
cloud = start_storm()
while number < count:
    try:
        body()
    except KeyboardInterrupt:
        pass
end_storm(cloud)
q.shutdown()
"""


@pytest.mark.parametrize(("count", "padding"), [(60_000, b""), (20_000, b"x" * 9000)], ids=["small", "large"])
def test_a_storm_of_ctrl_c_on_a_consumer_loses_no_message_and_brings_none_twice(
    name: str, run_python: Run, count: int, padding: bytes
) -> None:
    with SageQueue[Any](name, capacity="1 MiB") as q:

        def put_all() -> None:
            for number in range(count):
                q.put((number, padding))
            q.shutdown()

        thread = threading.Thread(target=put_all)
        thread.start()
        hits, verdict = run_python(STORM + CONSUMER, name, str(count)).stdout.split()
        thread.join()
        assert int(hits) > 20
        assert verdict == "True"
        assert q.get_stats()["gets"] == count


def test_a_storm_of_ctrl_c_on_a_producer_loses_no_message_and_puts_none_twice(name: str, run_python: Run) -> None:
    """A put that raised KeyboardInterrupt has put nothing, so the producer repeats it.

    In Python 3.10 there is a gap behind every call, in the caller: there an item may come twice in a row."""
    seen: list[int] = []
    with SageQueue[int](name, maxsize=100) as q:

        def take_all() -> None:
            try:
                while True:
                    seen.append(q.get())
            except sage_queue.ShutDown:
                pass

        thread = threading.Thread(target=take_all)
        thread.start()
        (hits,) = run_python(STORM + PRODUCER, name, "20000").stdout.split()
        thread.join()
    assert int(hits) > 20
    if sys.version_info >= (3, 11):
        assert seen == list(range(20_000))
    else:
        assert sorted(set(seen)) == list(range(20_000))
        assert all(0 <= after - before <= 1 for before, after in zip(seen, seen[1:]))


def test_ctrl_c_ends_a_program_that_waits_and_leaves_nothing(name: str, run_python: Run) -> None:
    code = """
import os, signal, sys, threading
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
q.get()
"""
    done = run_python(code, name, check=False)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
