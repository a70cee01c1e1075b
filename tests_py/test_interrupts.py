"""Signals: a waiting call reacts at once, and whatever a handler raises, no message is lost or comes twice."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import SOON, WITH_HELPERS, Run, SlowToPickle, clean

import sage_queue
from sage_queue import SageQueue, ShutDown


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    """Tests set handlers of their own."""
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
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


# ---- storms ----

# A program that is hit by 1,000 signals, one after the other: the next one is on its way when body() has begun again.  So the
# default handler of SIGINT will do, and each signal is exactly one KeyboardInterrupt (or, by an alarm, one TimeoutError).
#
# Messages are taken in a way that has no gap of its own between get() and the list.  `item = q.get()` has none since Python 3.11;
# in 3.10 every call has one behind it, in the caller, so there the interpreter's C code makes the call.
STORM = """
import os, random, select, signal, sys, time
from helpers import SlowToPickle
from sage_queue import SageQueue, ShutDown

name, which, weapon, padding, wanted = sys.argv[1:]
padding, wanted = int(padding), int(wanted)
hits = number = 0
seen = []
q = SageQueue(name)

def made(number):
    return (number, SlowToPickle(number), b"x" * padding)

def get():
    append = seen.append
    if sys.version_info >= (3, 11):
        while True:
            item = q.get()
            append(item[0])
    for item in iter(q.get, None):
        append(item[0])

def get_many():
    extend = seen.extend
    if sys.version_info >= (3, 11):
        while True:
            extend(q.get_many(50))
    for items in iter(q.get_many, None):
        extend(items)

def put(goes_on=lambda: True):
    global number
    while goes_on():
        q.put(made(number))
        number += 1

def put_many(goes_on=lambda: True):
    global number
    while goes_on():
        q.put_many([made(number), made(number + 1), made(number + 2)])
        number += 3

def cloud_of_ctrl_c():
    "Another process sends the signals, each a random moment after it was told to."
    victim = os.getpid()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        while os.read(reader, 1):
            time.sleep(random.random() ** 2 * 0.002)
            os.kill(victim, signal.SIGINT)
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return lambda: os.write(writer, b"!")

def alarm(number, frame):
    raise TimeoutError

def alarm_clock():
    signal.signal(signal.SIGALRM, alarm)
    return lambda: signal.setitimer(signal.ITIMER_REAL, 0.00001 + random.random() ** 2 * 0.002)

body = {"get": get, "get_many": get_many, "put": put, "put_many": put_many}[which]
call_for_the_next = {"ctrl-c": cloud_of_ctrl_c, "alarm": alarm_clock}[weapon]()
while hits < wanted:
    try:
        call_for_the_next()
        body()
    except (KeyboardInterrupt, TimeoutError):
        hits += 1
print("enough", flush=True)
if which.startswith("get"):
    try:
        body()
    except ShutDown:
        pass
else:
    body(lambda: not select.select([0], [], [], 0)[0])
    q.shutdown()
print(hits, number, *(item if isinstance(item, int) else item[0] for item in seen))
"""

SIGNALS = 1000
weapons = pytest.mark.parametrize("weapon", ["ctrl-c", "alarm"])
paddings = pytest.mark.parametrize("padding", [0, 9000, 300_000], ids=["small", "in place", "in the arena"])


class Stormed:
    """The program above, running."""

    def __init__(self, name: str, which: str, weapon: str, padding: int) -> None:
        command = [sys.executable, "-c", STORM, name, which, weapon, str(padding), str(SIGNALS)]
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **WITH_HELPERS})

    def wait_for_the_last_signal(self) -> None:
        assert self.program.stdout is not None
        assert self.program.stdout.readline() == "enough\n"

    def end(self) -> tuple[int, list[int]]:
        """Have a producer stop.  How many it had put, and what a consumer had got, in its order."""
        output, _ = self.program.communicate(timeout=SOON)  # which closes its standard input
        assert self.program.returncode == 0
        hits, number, *seen = map(int, output.split())
        assert hits == SIGNALS
        return number, seen


def whole(seen: list[int], count: int, at_once: int = 1) -> bool:
    """Whether all have come, once, and in order.  In Python 3.10, what was put in the gap behind a call comes twice in a row."""
    if sys.version_info >= (3, 11):
        return seen == list(range(count))
    calls = [seen[start : start + at_once] for start in range(0, len(seen), at_once)]
    once = [each for each, before in zip(calls, [[], *calls]) if each != before]
    last_too = count + at_once  # put in the gap that the last signal found, and not again
    return [number for each in once for number in each] in (list(range(count)), list(range(last_too)))


@paddings
@weapons
@pytest.mark.parametrize("which", ["get", "get_many"])
def test_a_storm_on_a_consumer_loses_no_message_and_brings_none_twice(name: str, which: str, weapon: str, padding: int) -> None:
    count = 0
    enough = threading.Event()
    with SageQueue[Any](name, capacity="1 MiB", arena="4 MiB") as q:

        def put_all() -> None:
            nonlocal count
            while not enough.is_set():
                q.put((count, SlowToPickle(count), b"x" * padding))
                count += 1
                if count % 50 == 0:
                    time.sleep(0.0005)  # so that it has to wait, too
            q.shutdown()

        consumer = Stormed(name, which, weapon, padding)
        thread = threading.Thread(target=put_all)
        thread.start()
        try:
            consumer.wait_for_the_last_signal()
        finally:
            enough.set()
            thread.join()
        _, seen = consumer.end()
        assert seen == list(range(count))
        stats = q.get_stats()
        assert (stats["puts"], stats["gets"], q.qsize()) == (count, count, 0)
        assert clean(q)


@paddings
@weapons
@pytest.mark.parametrize("which", ["put", "put_many"])
def test_a_storm_on_a_producer_loses_no_message_and_puts_none_twice(name: str, which: str, weapon: str, padding: int) -> None:
    """A put that raised KeyboardInterrupt has put nothing, so the producer repeats it."""
    with SageQueue[Any](name, maxsize=100, arena="4 MiB") as q:
        seen: list[int] = []

        def take_all() -> None:
            for turn in itertools.count():
                try:
                    seen.append(q.get()[0])
                except ShutDown:
                    return
                if turn % 200 == 0:
                    time.sleep(0.002)  # so that it has to wait, too

        producer = Stormed(name, which, weapon, padding)
        thread = threading.Thread(target=take_all)
        thread.start()
        try:
            producer.wait_for_the_last_signal()
            count, _ = producer.end()
        finally:
            q.shutdown()
            thread.join()
        assert whole(seen, count, 3 if which == "put_many" else 1)
        assert clean(q)


@paddings
@weapons
@pytest.mark.parametrize(("puts", "gets"), [("put", "get"), ("put_many", "get_many")], ids=["one by one", "many"])
def test_storms_on_both_ends_lose_nothing_and_double_nothing(name: str, puts: str, gets: str, weapon: str, padding: int) -> None:
    with SageQueue[Any](name, capacity="1 MiB", arena="4 MiB") as q:
        producer, consumer = Stormed(name, puts, weapon, padding), Stormed(name, gets, weapon, padding)
        consumer.wait_for_the_last_signal()
        producer.wait_for_the_last_signal()
        count, _ = producer.end()
        _, seen = consumer.end()
        assert whole(seen, count, 3 if puts == "put_many" else 1)
        assert clean(q)


@pytest.mark.parametrize("call", ["get", "lease", "get_many", "put", "put of a large item", "put_many", "reserve"])
def test_a_storm_of_signals_that_raise_nothing_ends_no_wait_early(call: str) -> None:
    ran = 0

    def count(number: int, frame: Any) -> None:
        nonlocal ran
        ran += 1

    signal.signal(signal.SIGALRM, count)
    with SageQueue[Any](maxsize=1, arena="1 MiB") as q:
        calls: dict[str, Callable[[], Any]] = {
            "get": lambda: q.get(timeout=0.5),
            "lease": lambda: q.lease(timeout=0.5),
            "get_many": lambda: q.get_many(timeout=0.5),
            "put": lambda: q.put(1, timeout=0.5),
            "put of a large item": lambda: q.put(b"x" * 900_000, timeout=0.5),
            "put_many": lambda: q.put_many([1], timeout=0.5),
            "reserve": lambda: q.reserve(900_000, timeout=0.5),
        }
        waits_for_items = call in ("get", "lease", "get_many")
        if not waits_for_items:
            q.put(b"x" * 900_000)
        before = q.get_stats()
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        try:
            start = time.monotonic()
            with pytest.raises(sage_queue.Empty if waits_for_items else sage_queue.Full):
                calls[call]()
            assert time.monotonic() - start >= 0.5
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert ran > 100
        after = q.get_stats()
        assert [after[key] for key in ("puts", "gets", "items", "reserved")] == [
            before[key] for key in ("puts", "gets", "items", "reserved")
        ]


def test_a_storm_of_signals_that_raise_nothing_does_not_end_a_wait_for_ever() -> None:
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    with SageQueue[Any](maxsize=1) as q:
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        try:
            timer = threading.Timer(0.3, q.put, ("here",))
            timer.start()
            assert q.get() == "here"
            timer.join()
            timer = threading.Timer(0.3, q.task_done)
            timer.start()
            q.join()
            timer.join()
            assert q.get_stats()["unfinished"] == 0
            q.put("in the way")
            timer = threading.Timer(0.3, q.get)
            timer.start()
            q.put("has room now")
            timer.join()
            assert q.get() == "has room now"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


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
