"""What people expect of a queue who know queue.Queue and multiprocessing.Queue: what is refused, and which numbers are understood."""

from __future__ import annotations

import decimal
import fractions
import math
import queue
import time
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import sage_queue
from helpers import SOON
from sage_queue import Empty, SageQueue


@pytest.mark.parametrize(
    "use",
    [lambda q: 5 in q, lambda q: 5 not in q, reversed, len, lambda q: q[0]],
    ids=["in", "not in", "reversed", "len", "index"],
)
def test_what_queue_refuses_with_a_type_error_is_refused_and_takes_nothing(use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        use(queue.Queue())
    with SageQueue[int]() as q:
        q.put_many(range(10))
        with pytest.raises(TypeError):
            use(q)
        assert q.qsize() == 10


def test_iteration_takes_what_it_is_asked_for_and_no_more() -> None:
    with SageQueue[int]() as q:
        q.put_many(range(10))
        for item in q:
            if item == 3:
                break
        assert q.drain() == [4, 5, 6, 7, 8, 9]


SHORT = 1 / 16  # exact in every type below


@pytest.mark.parametrize(
    "timeout",
    [
        numpy.float16(SHORT),
        numpy.float32(SHORT),
        numpy.float64(SHORT),
        numpy.longdouble(SHORT),
        numpy.array(SHORT),
        decimal.Decimal(SHORT),
        fractions.Fraction(SHORT),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_timeout_may_be_a_number_of_any_type(timeout: Any) -> None:
    with SageQueue[int]() as q:
        before = time.monotonic()
        with pytest.raises(Empty, match="timed out"):
            q.get(timeout=timeout)
        assert time.monotonic() - before >= SHORT
        before = time.monotonic()
        assert sage_queue.wait([q], timeout) == []
        assert time.monotonic() - before >= SHORT


@pytest.mark.parametrize("kind", [numpy.int8, numpy.uint8, numpy.int16, numpy.int32, numpy.uint32, numpy.int64, numpy.bool_, bool])
def test_whole_seconds_of_every_width_are_as_many_seconds(kind: Callable[[int], Any]) -> None:
    now = sage_queue._native.now_ns()
    assert 1_000_000_000 <= sage_queue._held.deadline_of(True, kind(1)) - now < 2_000_000_000 + SOON * 1_000_000_000


@pytest.mark.parametrize("timeout", ["5", b"5", [1], 1j, object()], ids=repr)
def test_a_timeout_that_is_no_number_is_a_type_error_that_says_what_is(timeout: Any) -> None:
    with SageQueue[int]() as q:
        for call in (lambda: q.get(timeout=timeout), lambda: q.put(1, timeout=timeout), lambda: sage_queue.wait([q], timeout)):
            with pytest.raises(TypeError, match="'timeout' must be a number of seconds"):
                call()
        assert q.empty()


@pytest.mark.parametrize("timeout", [-1, -0.5, math.nan, -math.inf, -(10**400), numpy.int8(-1), numpy.float32("nan"), decimal.Decimal("-1")])
def test_a_timeout_before_now_is_a_value_error(timeout: Any) -> None:
    with SageQueue[int]() as q:
        q.put(1)
        for call in (lambda: q.get(timeout=timeout), lambda: q.put(1, timeout=timeout), lambda: sage_queue.wait([q], timeout)):
            with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
                call()
        assert q.qsize() == 1


@pytest.mark.parametrize("timeout", [math.inf, 10**400, 1e300, numpy.float32("inf")], ids=["inf", "10**400", "1e300", "float32 inf"])
def test_a_timeout_beyond_all_clocks_waits_for_ever(timeout: Any) -> None:
    assert sage_queue._held.deadline_of(True, timeout) == sage_queue._native.FOREVER


def test_a_deadline_comes_where_the_time_module_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    with SageQueue[int](maxsize=1) as q:
        for clock in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"):
            monkeypatch.setattr(time, clock, lambda: 0)  # as freezegun and time-machine do
        with pytest.raises(Empty):
            q.get(timeout=0.02)
        assert sage_queue.wait([q], 0.02) == []
        q.put(1)
        with pytest.raises(queue.Full):
            q.put(2, timeout=0.02)
        with pytest.raises(queue.Full):
            q.put_many([2], timeout=0.02)
        q.get()
        q.task_done()
        q.join()


def test_wait_works_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    import select

    monkeypatch.delattr(select, "poll")  # as eventlet does
    with SageQueue[int]() as q, SageQueue[int]() as other:
        assert sage_queue.wait([q, other], 0.01) == []
        other.put(1)
        assert sage_queue.wait([q, other], SOON) == [other]
