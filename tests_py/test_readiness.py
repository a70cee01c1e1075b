"""fileno() and wait(): a descriptor that is readable exactly while a get would not wait, for every kind of loop that there is."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import random
import select
import selectors
import signal
import socket
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import SOON, Run, forked, until

import sage_queue
from sage_queue import Empty, QueueClosed, SageQueue, ShutDown

A_WHILE = 0.05  # for what should not happen
LARGE = 200_000  # bytes: these go through the arena
Way = Callable[[Any, float], bool]


def is_up(q: Any) -> bool:
    return bool(select.select([q], [], [], 0)[0])


def finish(*processes: Any) -> None:
    for process in processes:
        process.join(SOON)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- ways to wait: whether the queue becomes ready within so many seconds ----


def by_select(q: Any, seconds: float) -> bool:
    return bool(select.select([q], [], [], seconds)[0])


def by_poll(q: Any, seconds: float) -> bool:
    poll = select.poll()
    poll.register(q, select.POLLIN)
    return [(q.fileno(), select.POLLIN)] == poll.poll(seconds * 1000)


def by_epoll(q: Any, seconds: float) -> bool:
    with select.epoll() as epoll:
        epoll.register(q, select.EPOLLIN)
        return [(q.fileno(), select.EPOLLIN)] == epoll.poll(seconds)


def by_selectors(q: Any, seconds: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(q, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(seconds)] == [q]


def by_connection_wait(q: Any, seconds: float) -> bool:
    return multiprocessing.connection.wait([q], seconds) == [q]


def by_wait(q: Any, seconds: float) -> bool:
    return sage_queue.wait([q], seconds) == [q]


def by_add_reader(q: Any, seconds: float, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> bool:
    async def wait() -> bool:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(q, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            loop.remove_reader(q)
        return True

    loop = new_loop()
    try:
        return loop.run_until_complete(wait())
    finally:
        loop.close()


def by_uvloop(q: Any, seconds: float) -> bool:
    return by_add_reader(q, seconds, pytest.importorskip("uvloop").new_event_loop)


def by_trio(q: Any, seconds: float) -> bool:
    trio = pytest.importorskip("trio")

    async def wait() -> bool:
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(q)
            return True
        return False

    ready: bool = trio.run(wait)
    return ready


WAYS = [by_select, by_poll, by_epoll, by_selectors, by_connection_wait, by_wait, by_add_reader, by_uvloop, by_trio]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__[3:])
def way(request: pytest.FixtureRequest) -> Way:
    """How to wait: whether the queue becomes ready within so many seconds."""
    found: Way = request.param
    if found in (by_uvloop, by_trio):
        pytest.importorskip(found.__name__[3:])
    return found


# ---- the level ----


def test_a_queue_is_ready_exactly_while_something_is_in_it(way: Way) -> None:
    with SageQueue[int]() as q:
        assert not way(q, A_WHILE)
        q.put(1)
        q.put(2)
        assert way(q, SOON)
        assert way(q, SOON)  # looking changes nothing
        assert q.get() == 1
        assert way(q, SOON)
        assert q.get() == 2
        assert not way(q, A_WHILE)
        q.put(3)
        assert way(q, SOON)
        assert q.get() == 3


def test_what_was_there_before_anybody_asked_counts(name: str) -> None:
    with SageQueue[int](name) as q, SageQueue[int](name) as late:
        q.put(1)
        assert is_up(q)
        assert is_up(late)
        assert late.get() == 1
        assert not is_up(late)
        assert not is_up(q)


@pytest.mark.parametrize("immediate", [False, True])
def test_a_shut_down_queue_is_ready_also_when_it_is_empty(way: Way, immediate: bool) -> None:
    with SageQueue[int]() as q:
        assert not way(q, A_WHILE)
        q.shutdown(immediate)
        assert way(q, SOON)
        with pytest.raises(ShutDown):
            q.get_nowait()
        assert way(q, SOON)


def test_an_immediate_shutdown_of_a_full_queue_leaves_it_ready() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        assert is_up(q)
        q.shutdown(immediate=True)
        assert is_up(q)


def test_the_number_is_the_same_at_each_call_and_there_is_none_after_close() -> None:
    q = SageQueue[int]()
    number = q.fileno()
    q.put(1)
    assert q.fileno() == number
    q.get()
    assert q.fileno() == number
    q.close()
    with pytest.raises(QueueClosed):
        q.fileno()
    with pytest.raises(QueueClosed):
        sage_queue.wait([q], 0)
    with pytest.raises(OSError):
        os.fstat(number)


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_leased_item_is_not_there_and_one_given_back_is(size: int) -> None:
    with SageQueue[bytes]() as q:
        q.put(bytes(size))
        message = q.lease()
        assert not is_up(q)
        message.nack()
        assert is_up(q)
        message = q.lease()
        message.ack()
        assert not is_up(q)
        q.put(bytes(size))
        message = q.lease()
        assert not is_up(q)
        del message  # dropping it gives it back
        assert is_up(q)
        assert len(q.get()) == size


def test_a_handle_that_is_closed_gives_its_leases_back_and_others_see_that(name: str) -> None:
    with SageQueue[str](name) as q:
        other = SageQueue[str](name)
        q.put("work")
        message = other.lease()
        assert not is_up(q)
        other.close()
        assert is_up(q)
        assert q.get() == "work"
        del message


def test_a_message_that_cannot_be_decoded_is_gone_from_the_level_too() -> None:
    with SageQueue[Any]() as q:
        q.put(Unreadable())
        assert is_up(q)
        with pytest.raises(ValueError, match="Failed to deserialize item"):
            q.get()
        assert not is_up(q)


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()


def fail() -> None:
    raise RuntimeError("unreadable")


def test_a_message_that_is_moved_away_leaves_the_queue_not_ready(name: str) -> None:
    with SageQueue[str](name, max_attempts=1, dead_letter=f"{name}-failed") as q:
        with SageQueue[str](f"{name}-failed", auto_cleanup=True) as failed:
            q.put("cursed")
            q.lease().nack()
            assert is_up(q)  # a get would not wait before it has moved the message
            with pytest.raises(Empty):
                q.get_nowait()
            assert not is_up(q)
            assert is_up(failed)
            assert failed.get() == "cursed"


def test_batches_move_the_level_as_single_calls_do() -> None:
    with SageQueue[int]() as q:
        assert not is_up(q)
        q.put_many([1, 2, 3])
        assert is_up(q)
        assert q.get_many(2) == [1, 2]
        assert is_up(q)
        assert q.get_many() == [3]
        assert not is_up(q)
        q.put_many(range(1000))
        assert is_up(q)
        assert q.drain() == list(range(1000))
        assert not is_up(q)


def test_a_reservation_is_there_when_it_is_left() -> None:
    with SageQueue[Any]() as q:
        assert not is_up(q)
        with q.reserve(LARGE):
            assert not is_up(q)
        assert is_up(q)
        view = q.get(copy=False)
        assert not is_up(q)
        del view
        assert not is_up(q)


# ---- between processes ----


def act(q: SageQueue[Any], held: list[Any], what: str) -> Any:
    """One operation on the queue; what is leased stays in `held`."""
    if what == "put":
        return q.put("small")
    if what == "put large":
        return q.put(bytes(LARGE))
    if what == "put many":
        return q.put_many(["one", bytes(LARGE), "three"])
    if what == "nack":
        return held.pop().nack()
    if what == "ack":
        return held.pop().ack()
    try:
        if what == "get":
            q.get_nowait()
        elif what == "view":
            q.get(False, copy=False)
        elif what == "get many":
            return len(q.get_many(3, block=False))
        elif what == "lease":
            held.append(q.lease(False))
    except Empty:
        return 0
    return 1


def obey(q: SageQueue[Any], orders: Any) -> None:
    """Do what comes through the pipe, and answer with the outcome and the level that is seen here."""
    held: list[Any] = []
    is_up(q)
    while (what := orders.recv()) is not None:
        orders.send((act(q, held, what), is_up(q), q.qsize()))
    q.close()


CHANGES = {"put": 1, "put large": 1, "put many": 3, "nack": 1, "ack": 0}
TAKES = ["get", "view", "get many", "lease"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_three_processes_do_the_descriptors_of_all_tell_the_truth(context: Any, seed: int) -> None:
    chance = random.Random(seed)
    with SageQueue[Any](capacity="1 MiB") as q:
        pipes, children = [], []
        for _ in range(2):
            here, there = context.Pipe()
            pipes.append(here)
            children.append(context.Process(target=obey, args=(q, there)))
            children[-1].start()
        held: list[Any] = []
        leased = [0, 0, 0]
        inside = 0
        for _ in range(400):
            party = chance.randrange(3)
            what = chance.choice(["nack", "ack"]) if chance.random() < 0.6 and leased[party] else ""
            what = what or chance.choice(["put", "put large", "put many", *TAKES, *TAKES])
            if inside > 20:
                what = chance.choice(TAKES)
            if party < 2:
                pipes[party].send(what)
                outcome, up, size = pipes[party].recv()
            else:
                outcome, up, size = act(q, held, what), is_up(q), q.qsize()
            inside += CHANGES[what] if what in CHANGES else -outcome
            leased[party] += outcome if what == "lease" else -(what in ("nack", "ack"))
            assert (up, size) == (inside > 0, inside), what
            assert is_up(q) == (inside > 0), what
        for pipe in pipes:
            pipe.send(None)
        finish(*children)  # which gives back what they had leased
        held.clear()
        inside += sum(leased)
        assert (is_up(q), q.qsize()) == (inside > 0, inside)
        q.drain()
        assert not is_up(q)


def put_after(q: SageQueue[Any], seconds: float, item: Any) -> None:
    time.sleep(seconds)
    q.put(item)


def test_one_who_sleeps_is_woken_by_the_put_of_another_process(way: Way) -> None:
    with SageQueue[str]() as q:
        assert not way(q, A_WHILE)
        child: Any = multiprocessing.get_context("fork").Process(target=put_after, args=(q, 0.1, "morning"))
        child.start()
        assert way(q, SOON)
        assert q.get_nowait() == "morning"
        finish(child)


def test_one_who_sleeps_is_woken_by_the_shutdown_of_another_process(way: Way, name: str) -> None:
    with SageQueue[str](name) as q:
        assert not way(q, A_WHILE)
        child: Any = multiprocessing.get_context("fork").Process(target=shut_down_after, args=(q, 0.1))
        child.start()
        assert way(q, SOON)
        finish(child)


def shut_down_after(q: SageQueue[Any], seconds: float) -> None:
    time.sleep(seconds)
    q.shutdown()


def work_when_ready(q: SageQueue[Any], results: SageQueue[Any], way: Way) -> None:
    seen = []
    while True:
        assert way(q, SOON)
        try:
            while True:
                seen.append(q.get_nowait())
                if len(seen) % 3:
                    break  # now and then it empties the queue, mostly it takes one
        except Empty:
            continue
        except ShutDown:
            break
    results.put(seen)


def work_by_get(q: SageQueue[Any], results: SageQueue[Any]) -> None:
    results.put(list(q))


def put_all(q: SageQueue[Any], producer: int, count: int) -> None:
    for sequence in range(count):
        q.put((producer, sequence, b"x" * (LARGE if sequence % 97 == 0 else sequence % 500)))


@pytest.mark.parametrize("blocking", [0, 2])
def test_of_processes_that_sleep_on_descriptors_each_item_reaches_one(way: Way, blocking: int) -> None:
    fork = multiprocessing.get_context("fork")
    each = 500
    with SageQueue[Any](maxsize=20) as q, SageQueue[Any](capacity="16 MiB") as results:
        workers: list[Any] = [fork.Process(target=work_when_ready, args=(q, results, way)) for _ in range(3)]
        workers += [fork.Process(target=work_by_get, args=(q, results)) for _ in range(blocking)]
        producers: list[Any] = [fork.Process(target=put_all, args=(q, number, each)) for number in range(2)]
        for process in workers + producers:
            process.start()
        finish(*producers)
        q.shutdown()
        finish(*workers)
        parts = [[item[:2] for item in results.get(timeout=SOON)] for _ in workers]
    assert sorted(itertools.chain(*parts)) == [(producer, number) for producer in range(2) for number in range(each)]
    for part in parts:
        for producer in range(2):
            numbers = [number for sender, number in part if sender == producer]
            assert numbers == sorted(numbers)


# ---- the dead ----


class Trap:
    """Whoever decodes it, except the one who made it, is held for ever."""

    def __init__(self) -> None:
        self.maker = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)
        while os.getpid() != self.maker:
            time.sleep(1)


def take_and_hang(q: SageQueue[Any], how: str) -> None:
    kept = q.lease() if how == "lease" else q.get()  # the latter never ends
    while True:
        time.sleep(1)
    del kept


@pytest.mark.parametrize("how", ["lease", "get"])
def test_one_who_only_sleeps_gets_what_a_killed_process_had_taken(way: Way, how: str) -> None:
    with SageQueue[Any]() as q:
        q.put(Trap())
        child: Any = multiprocessing.get_context("fork").Process(target=take_and_hang, args=(q, how))
        child.start()
        until(q.empty)
        assert not way(q, A_WHILE)
        child.kill()
        child.join(SOON)
        assert way(q, SOON)
        assert isinstance(q.get_nowait(), Trap)
        assert not way(q, A_WHILE)


def test_the_death_of_all_who_listened_harms_nobody(queue_directory: pathlib.Path) -> None:
    with SageQueue[int]() as q:
        children: list[Any] = [multiprocessing.get_context("fork").Process(target=sleep_for_ever, args=(q,)) for _ in range(3)]
        for child in children:
            child.start()
        until(lambda: len(fifos(queue_directory)) == 1)
        for child in children:
            child.kill()
            child.join(SOON)
        for number in range(100):
            q.put(number)
            assert q.get() == number
        assert not is_up(q)
        q.put(1)
        assert is_up(q)
        assert q.get() == 1
        assert not is_up(q)


def sleep_for_ever(q: SageQueue[Any]) -> None:
    while True:
        select.select([q], [], [])


def fifos(directory: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in directory.iterdir() if stat.S_ISFIFO(path.lstat().st_mode)]


def test_a_storm_of_kills_of_those_who_sleep_and_take_loses_nothing_that_was_not_acknowledged() -> None:
    fork = multiprocessing.get_context("fork")
    chance = random.Random(7)
    count = 300
    with SageQueue[int]() as q, SageQueue[int]() as done:
        workers: list[Any] = []
        for number in range(count):
            q.put(number)
        finished: set[int] = set()
        while len(finished) < count:
            workers = [worker for worker in workers if worker.is_alive()]
            while len(workers) < 3:
                workers.append(fork.Process(target=lease_when_ready, args=(q, done)))
                workers[-1].start()
            if len(finished) < count * 3 // 4:
                chance.choice(workers).kill()
            for ready in sage_queue.wait([done], 0.02):
                finished.update(ready.drain())
        assert finished == set(range(count))
        q.shutdown()
        finish(*workers)


def lease_when_ready(q: SageQueue[int], done: SageQueue[int]) -> None:
    while True:
        select.select([q], [], [])
        try:
            with q.lease(False) as message:
                time.sleep(0.001)
                done.put(message.value)
        except Empty:
            continue
        except ShutDown:
            return


# ---- wait() ----


def test_wait_names_those_that_are_ready_and_no_others() -> None:
    with SageQueue[int]() as a, SageQueue[int]() as b, SageQueue[int]() as c:
        assert sage_queue.wait([a, b, c], 0) == []
        b.put(1)
        assert sage_queue.wait([a, b, c]) == [b]
        c.shutdown()
        ready = sage_queue.wait((a, b, c), SOON)
        assert len(ready) == 2 and b in ready and c in ready
        assert b.get() == 1
        assert sage_queue.wait(iter([a, b, c])) == [c]


def test_wait_sleeps_until_the_first_of_many_is_ready() -> None:
    queues = [SageQueue[int](capacity="64 KiB", arena=0) for _ in range(100)]
    try:
        for place in (50, 0, 99):
            timer = threading.Timer(0.05, queues[place].put, (place,))
            timer.start()
            (ready,) = sage_queue.wait(queues)
            assert ready is queues[place]
            assert ready.get_nowait() == place
            timer.join()
    finally:
        for q in queues:
            q.close()


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_wait_with_nothing_ready_ends_at_its_timeout_and_not_before(timeout: float) -> None:
    with SageQueue[int]() as q:
        start = time.monotonic()
        assert sage_queue.wait([q], timeout) == []
        assert time.monotonic() - start >= timeout


def test_wait_takes_queues_together_with_pipes_sockets_sentinels_and_numbers() -> None:
    here, there = multiprocessing.Pipe()
    left, right = socket.socketpair()
    reading, writing = os.pipe()
    child: Any = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    with SageQueue[int]() as q, here, there, left, right:
        child.start()
        things: list[Any] = [q, here, left, reading]
        assert sage_queue.wait(things, 0) == []
        there.send("x")
        assert sage_queue.wait(things, SOON) == [here]
        assert here.recv() == "x"
        right.send(b"x")
        assert sage_queue.wait(things, SOON) == [left]
        left.recv(1)
        os.write(writing, b"x")
        assert sage_queue.wait(things, SOON) == [reading]
        q.put(1)
        ready = sage_queue.wait(things, SOON)
        assert len(ready) == 2 and q in ready and reading in ready
        assert q.get() == 1
        os.read(reading, 1)
        assert sage_queue.wait([*things, child.sentinel], SOON) == [child.sentinel]
        there.close()
        assert sage_queue.wait(things, SOON) == [here]  # the end of a pipe is ready, too
    os.close(reading)
    os.close(writing)
    finish(child)


def test_queues_may_stand_in_the_wait_of_multiprocessing() -> None:
    here, there = multiprocessing.Pipe()
    with SageQueue[int]() as a, SageQueue[int]() as b, here, there:
        things: list[Any] = [a, here, b]
        assert multiprocessing.connection.wait(things, 0) == []
        timer = threading.Timer(0.05, b.put, (1,))
        timer.start()
        assert list[Any](multiprocessing.connection.wait(things)) == [b]
        timer.join()
        there.send("x")
        ready = list[Any](multiprocessing.connection.wait(things, SOON))
        assert len(ready) == 2 and b in ready and here in ready
        assert b.get() == 1


def test_threads_that_wait_for_one_queue_are_all_woken() -> None:
    with SageQueue[int]() as q:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(sage_queue.wait([q], SOON))) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(A_WHILE)
        q.put(1)
        for thread in threads:
            thread.join(SOON)
        assert answers == [[q]] * 8
        assert q.get() == 1


def test_wait_refuses_what_has_no_descriptor_and_a_timeout_below_zero() -> None:
    with pytest.raises(ValueError, match="fileno"):
        sage_queue.wait([object()], 0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="timeout"):
        sage_queue.wait([], -1)  # as get() does


def test_wait_on_nothing_with_a_timeout_answers_with_nothing() -> None:
    assert sage_queue.wait([], 0) == []
    assert sage_queue.wait([], A_WHILE) == []


# ---- signals ----


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_wait_and_changes_nothing(interruptible: None) -> None:
    with SageQueue[int]() as q:
        timer = threading.Timer(A_WHILE, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            sage_queue.wait([q])
        timer.join()
        q.put(1)
        assert sage_queue.wait([q]) == [q]
        assert q.get() == 1


def test_a_handler_that_raises_nothing_does_not_end_a_wait() -> None:
    ran: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: ran.append(number))
    try:
        with SageQueue[int]() as q:
            timers = [threading.Timer(0.03 * place, os.kill, (os.getpid(), signal.SIGUSR1)) for place in range(1, 5)]
            for timer in timers:
                timer.start()
            start = time.monotonic()
            assert sage_queue.wait([q], 0.3) == []
            assert time.monotonic() - start >= 0.3
            for timer in timers:
                timer.join()
            assert len(ran) == 4
    finally:
        signal.signal(signal.SIGUSR1, before)


# ---- what it costs, and what stays ----


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_queue_that_nobody_asks_has_no_descriptor_and_no_second_file(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name) as q:
        before = descriptors()
        q.put(1)
        q.get()
        with pytest.raises(Empty):
            q.get(timeout=0.01)
        assert descriptors() == before
        assert len(list(queue_directory.iterdir())) == 1
        with SageQueue[int](name) as other:
            other.fileno()
            assert len(fifos(queue_directory)) == 1
        assert fifos(queue_directory) == []  # it is gone with the last who asked
        q.put(2)
        assert q.get() == 2


def test_descriptors_are_closed_with_their_queues(queue_directory: pathlib.Path) -> None:
    before = None
    for turn in range(50):
        with SageQueue[int]() as a, SageQueue[int]() as b:
            a.fileno()
            assert sage_queue.wait([a, b], 0) == []
            b.put(1)
            assert sage_queue.wait([a, b], 0) == [b]
            b.get()
        assert not list(queue_directory.iterdir())
        before = before or descriptors()
    assert descriptors() == before


def test_a_dropped_queue_is_not_kept_by_its_descriptor(queue_directory: pathlib.Path) -> None:
    q = SageQueue[int]()
    q.fileno()
    assert sage_queue.wait([q], 0) == []
    del q
    gc.collect()
    until(lambda: not list(queue_directory.iterdir()))  # one who looks after the dead may hold it for a moment


def test_one_thread_looks_after_all_queues_and_none_if_only_wait_is_used(run_python: Run) -> None:
    code = """
import os, threading, sage_queue
from sage_queue import SageQueue
count = lambda: len(os.listdir("/proc/self/task"))
queues = [SageQueue() for _ in range(20)]
alone = count()
assert sage_queue.wait(queues, 0.01) == []
assert count() == alone, count()
for q in queues: q.fileno()
assert count() == alone + 1, count()
assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
for q in queues: q.close()
"""
    assert run_python(code).stderr == ""


def test_the_end_of_the_interpreter_does_not_wait_for_anything(run_python: Run, queue_directory: pathlib.Path) -> None:
    code = """
import sage_queue
from sage_queue import SageQueue
q = SageQueue(auto_cleanup=True)
q.fileno(); q.put(1)
assert sage_queue.wait([q]) == [q]
"""
    assert run_python(code).stderr == ""
    assert not list(queue_directory.iterdir())


def test_without_a_free_descriptor_the_call_fails_and_the_queue_goes_on(run_python: Run) -> None:
    code = """
import os, resource
import sage_queue, select
from sage_queue import SageQueue
with SageQueue() as q:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    full = max(map(int, os.listdir("/proc/self/fd"))) + 1
    taken = [os.dup(0) for _ in range(full - len(os.listdir("/proc/self/fd")) + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    for _ in range(3):
        try: q.fileno()
        except OSError as error: print(type(error).__name__)
        else: raise SystemExit("there was a descriptor left")
        q.put(1); assert q.get() == 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not select.select([q], [], [], 0)[0]
    q.put(1)
    assert select.select([q], [], [], 0)[0]
    assert q.get() == 1
"""
    assert len(run_python(code).stdout.split()) == 3


# ---- fork ----


def expect(what: bool) -> None:
    assert what


def ended(child: int) -> None:
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_has_a_descriptor_of_its_own_under_the_same_number() -> None:
    with SageQueue[int]() as q:
        number = q.fileno()

        def use() -> None:
            assert q.fileno() == number
            assert not is_up(q)
            q.put(1)
            assert is_up(q)
            assert q.get() == 1
            assert not is_up(q)
            q.close()
            with pytest.raises(QueueClosed):
                q.fileno()

        ended(forked(use))
        assert not is_up(q)
        q.put(2)
        assert is_up(q)
        ended(forked(lambda: q.get()))
        assert not is_up(q)


def test_a_child_that_inherited_a_descriptor_keeps_it_when_its_parent_closes() -> None:
    reading, writing = os.pipe()
    q = SageQueue[int]()
    with SageQueue[int]() as result:
        assert not is_up(q)

        def use() -> None:
            assert os.read(reading, 1) == b"x"
            q.put(1)
            assert is_up(q)
            assert q.get() == 1
            assert not is_up(q)
            result.put(2)
            q.close()

        child = forked(use)
        q.close()
        os.write(writing, b"x")
        assert sage_queue.wait([result], SOON) == [result]
        assert result.get() == 2
        ended(child)
    os.close(reading)
    os.close(writing)


def thief_of(q: SageQueue[Any]) -> Any:
    """A process that has taken what is in the queue, and does nothing more."""
    thief = multiprocessing.get_context("fork").Process(target=take_and_hang, args=(q, "lease"))
    thief.start()
    until(q.empty)
    return thief


def assert_a_death_wakes_a_sleeper_on(q: SageQueue[Any]) -> None:
    q.put("work")
    thief = thief_of(q)
    thief.kill()
    thief.join(SOON)
    assert by_select(q, SOON)
    assert q.get_nowait() == "work"


def test_a_forked_child_that_only_sleeps_is_given_what_the_dead_had_taken() -> None:
    """Nobody else is there to look: it needs a caretaker of its own, whatever its parent had."""
    q = SageQueue[Any]()
    with SageQueue[str]() as result:
        assert not is_up(q)  # starts the parent's
        q.put("work")
        thief = thief_of(q)

        def use() -> None:
            assert by_select(q, SOON)
            result.put(q.get_nowait())
            q.close()

        child = forked(use)
        q.close()
        thief.kill()
        thief.join(SOON)
        assert result.get(timeout=SOON) == "work"
        ended(child)


def test_a_warning_that_is_an_error_about_one_queue_leaves_no_sleeper_on_another(
    monkeypatch: pytest.MonkeyPatch, queue_directory: pathlib.Path
) -> None:
    reported: list[Any] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_type)
        raise RuntimeError("the program's hook fails, too")

    monkeypatch.setattr(threading, "excepthook", hook)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SageQueue[Any]("deleted_beside") as deleted, SageQueue[Any]() as q:
            assert not is_up(q) and not is_up(deleted)
            (queue_directory / "ringbuf.deleted_beside").unlink()
            until(lambda: RuntimeWarning in reported)
            assert_a_death_wakes_a_sleeper_on(q)


def test_an_exception_sent_to_the_thread_that_looks_after_descriptors_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    with SageQueue[Any]() as q:
        assert not is_up(q)
        caretaker = next(thread for thread in threading.enumerate() if thread.name == "sage_queue caretaker")
        assert caretaker.ident is not None
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caretaker.ident), ctypes.py_object(SystemExit)) == 1
        until(lambda: SystemExit in reported)
        assert_a_death_wakes_a_sleeper_on(q)
        assert caretaker.is_alive()


def test_where_the_thread_that_looks_after_descriptors_has_ended_another_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ended_thread = threading.Thread()
    ended_thread.start()
    ended_thread.join()
    monkeypatch.setattr(sage_queue._ready, "_thread", ended_thread)
    with SageQueue[Any]() as q:
        assert not is_up(q)
        started = sage_queue._ready._thread
        assert started is not ended_thread and started.is_alive()


def test_a_fork_while_other_threads_sleep_on_descriptors_stops_neither_them_nor_the_child() -> None:
    with SageQueue[int]() as q:
        assert not is_up(q)
        answers: list[bool] = []
        threads = [threading.Thread(target=lambda: answers.append(by_wait(q, SOON))) for _ in range(2)]
        threads += [threading.Thread(target=lambda: answers.append(by_select(q, SOON))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            ended(forked(lambda: expect(not is_up(q))))
        ended(forked(lambda: q.put(1)))
        for thread in threads:
            thread.join(SOON)
        assert answers == [True] * 4
        assert q.get() == 1


def test_a_pickled_queue_has_a_descriptor_of_its_own() -> None:
    with SageQueue[int]() as q:
        number = q.fileno()
        with pickle.loads(pickle.dumps(q)) as again:
            assert again.fileno() != number
            q.put(1)
            assert is_up(again) and is_up(q)
            assert again.get() == 1
            assert not is_up(again) and not is_up(q)
        assert not is_up(q)
