"""Many processes that wait for one queue: what they cost together, what becomes of them when others die, and how many there may be."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import forked, in_a_fork, sleepers, until

import sage_queue
from sage_queue import Empty, QueueCrowded, QueueExists, SageQueue, SageQueueManager, _native

CROWD = 60


@contextmanager
def crowd(count: int, wait: Callable[[int], Any]) -> Iterator[list[int]]:
    """So many processes that call `wait` with their number, until it returns."""

    def killable() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pids: list[int] = []
    try:
        for number in range(count):
            pids.append(forked(killable, lambda number=number: wait(number)))  # type: ignore[misc]
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def watch_word(q: SageQueue[Any], number: int) -> int:
    """One of the three words in which the queue's file says when somebody has looked after the dead, at what cost, among how many."""
    with open(q.get_shared_memory_info()["shm_path"], "rb") as file:
        file.seek(3072 + 8 * number)  # docs/layout.md
        return int.from_bytes(file.read(8), "little")


# ---- what waiting costs ----


def test_a_crowd_that_waits_wakes_up_less_than_a_fifth_as_often_as_if_each_looked_after_the_dead_itself() -> None:
    """A slow machine wakes them up less often, not more."""
    with SageQueue[int]() as q, crowd(CROWD, lambda _: q.get()):
        until(lambda: q.get_stats()["participants"] > CROWD and sleepers(q) >= CROWD)
        time.sleep(8)  # rests grow up to 2 s, and slices up to 4 s
        before, start = sleepers(q), time.monotonic()
        time.sleep(4)
        counted, seconds = sleepers(q) - before, time.monotonic() - start
        assert counted < CROWD * 10 * seconds / 5  # it is about a fifteenth


def test_a_crowd_goes_on_looking_after_the_dead_and_counts_itself() -> None:
    with SageQueue[int]() as q, crowd(CROWD, lambda _: q.get()):
        until(lambda: watch_word(q, 2) > CROWD)
        looks = {watch_word(q, 0)}
        until(lambda: looks.add(watch_word(q, 0)) or len(looks) == 10)


def test_in_a_crowd_what_the_dead_had_taken_comes_back_by_itself() -> None:
    def take(_: int) -> None:
        with q.lease() as message:
            got.put((os.getpid(), message.value))
            time.sleep(3600)

    with SageQueue[int]() as q, SageQueue[Any]() as got, crowd(CROWD, take) as pids:
        until(lambda: sleepers(q) >= CROWD)
        q.put(7)
        for _ in range(10):
            holder, item = got.get(timeout=60)  # the parent waits for another queue, so it does not look
            assert item == 7
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
            pids.remove(holder)


def test_the_last_of_a_crowd_finds_out_that_all_others_were_killed() -> None:
    def hold(_: int) -> None:
        held = q.lease()
        time.sleep(3600)
        held.ack()

    with SageQueue[int]() as q, SageQueue[int]() as got:
        with crowd(1, lambda _: got.put_many([q.get() for _ in range(CROWD)])):
            with crowd(CROWD, hold):
                # The first one gets and keeps some of these, the others one each.
                until(lambda: q.get_stats()["participants"] == CROWD + 2)
                for number in range(CROWD):
                    q.put(number)
                until(q.empty)
                time.sleep(2)
            # All of these are dead now, and the parent does not wait for this queue.
            assert sorted(got.get(timeout=60) for _ in range(CROWD)) == list(range(CROWD))


@pytest.mark.parametrize("waiting", ["select", "loop"])
def test_those_who_wait_by_descriptors_share_their_looks_with_others(waiting: str) -> None:
    """Somebody else looks all the time, so they never do: the time of the last look is always one of his."""

    def wait(_: int) -> None:
        if waiting == "select":
            while not sage_queue.wait([q], timeout=0.2):
                pass
        else:
            import asyncio

            asyncio.run(q.get_async())

    with SageQueue[int]() as q, crowd(3, wait):
        until(lambda: q.get_stats()["participants"] == 4)
        end, foreign = time.monotonic() + 1.5, 0
        looks: set[int] = set()
        while time.monotonic() < end:
            seen = watch_word(q, 0)
            foreign += seen not in looks
            _native.recover(q._handle, q.name)
            looks.add(watch_word(q, 0))
            time.sleep(0.01)
        # Each of them looks once by itself in 4 periods for each participant, and at first, whatever others say.
        assert foreign < len(looks) / 2


# ---- waits in slices ----


def test_a_signal_ends_a_wait_that_has_lasted_long() -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with SageQueue[int]() as q:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(Alarm):
                q.get()
            q.put(1)
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(Alarm):
                q.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_wait_in_many_slices_ends_at_its_deadline_and_not_before() -> None:
    with SageQueue[int]() as q:
        start = time.monotonic()
        with pytest.raises(Empty):
            q.get(timeout=2.5)
        assert time.monotonic() - start >= 2.5


# ---- how many there may be ----


def test_how_many_may_be_attached_is_chosen_at_creation_and_stays(name: str) -> None:
    with SageQueue[int](name) as usual:
        assert usual.max_participants == 1024
    for most in (1, 2, 4095):
        with SageQueue[int](name, max_participants=most) as q:
            assert q.max_participants == most
            if most > 1:
                with SageQueue[int](name, max_participants=7) as again:
                    assert again.max_participants == most
                with q.get_reference().get_queue() as again:
                    assert again.max_participants == most
    with SageQueueManager() as manager:
        assert manager.create_queue(name, max_participants=3).max_participants == 3
    with sage_queue.create_queue(name, max_participants=3) as q:
        assert q.max_participants == 3


@pytest.mark.parametrize("most", [0, -1, 4096, 1 << 70])
def test_a_number_of_participants_that_cannot_be_is_a_value_error(most: int) -> None:
    with pytest.raises(ValueError, match=f"max_participants={most} must be between 1 and 4095"):
        SageQueue[int](max_participants=most)


@pytest.mark.parametrize("most", [True, 2.0, "3", None])
def test_a_number_of_participants_that_is_none_is_a_type_error(most: Any) -> None:
    with pytest.raises(TypeError, match="max_participants must be an int"):
        SageQueue[int](max_participants=most)


@pytest.mark.parametrize("long", [False, True])
def test_one_too_many_is_told_how_many_there_may_be_and_what_helps(name: str, long: bool) -> None:
    name = name + "/" + "long " * 50 if long else name
    with SageQueue[int](name, max_participants=2) as q, SageQueue[int](name):
        with pytest.raises(QueueCrowded, match="^2 are attached to queue .* larger max_participants .up to 4095"):
            SageQueue[int](name)
        with pytest.raises(QueueCrowded, match="^2 are attached"):
            q.get_reference().get_queue()
        with pytest.raises(QueueExists):
            SageQueue[int](name, mode="create")

        def child() -> None:
            with pytest.raises(QueueCrowded, match="^2 are attached"):
                q.put(1)

        in_a_fork(child)


def test_the_dead_make_room_for_others(name: str) -> None:
    with SageQueue[int](name, max_participants=CROWD + 1) as q:
        with crowd(CROWD, lambda _: q.get()):
            until(lambda: q.get_stats()["participants"] == CROWD + 1)
            with pytest.raises(QueueCrowded, match=f"^{CROWD + 1} are attached"):
                SageQueue[int](name)
        with SageQueue[int](name) as again:
            again.put(1)
            assert q.get() == 1
