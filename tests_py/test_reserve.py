"""Messages that are written where they will lie: reserve, reserve_array, reserve_like."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SOON, Run, clean

import sage_queue
from sage_queue import SageQueue

numpy = pytest.importorskip("numpy")


def reserved(q: SageQueue[Any]) -> int:
    count: int = q.get_stats()["reserved"]
    return count


# ---- bytes ----


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 65_536, 1_000_000])
@pytest.mark.parametrize("serializer", ["pickle", "raw"])
def test_what_is_written_into_a_reservation_arrives_as_bytes(size: int, serializer: str) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    with SageQueue[Any](serializer=serializer) as q:
        with q.reserve(size) as buffer:
            assert (buffer.nbytes, buffer.readonly, q.qsize(), reserved(q)) == (size, False, 0, 1)
            buffer[:] = content
        assert (q.qsize(), reserved(q)) == (1, 0)
        got = q.get()
        assert type(got) is bytes and got == content
        with q.reserve(size) as buffer:
            buffer[:] = content
        view = q.get(copy=False)
        assert type(view) is memoryview and view.readonly and view == content
        view.release()
        assert clean(q)


def test_an_exception_gives_the_reservation_up_and_puts_nothing() -> None:
    with SageQueue[Any]() as q:
        with pytest.raises(ZeroDivisionError), q.reserve(100_000) as buffer:
            buffer[0] = 1
            1 / 0
        gc.collect()
        assert (q.qsize(), reserved(q)) == (0, 0)
        assert clean(q)
        with pytest.raises(ValueError, match="released memoryview"):
            buffer[0]


def test_a_reservation_can_be_ended_by_hand_once() -> None:
    with SageQueue[Any]() as q:
        for end in ("commit", "abort"):
            reservation = q.reserve(10)
            reservation.target[:] = b"0123456789"
            getattr(reservation, end)()
            for call in (reservation.commit, reservation.abort, lambda: reservation.target):
                with pytest.raises(ValueError, match="reservation is over"):
                    call()
        assert q.get() == b"0123456789"
        with q.reserve(10) as buffer:
            buffer[:] = bytes(10)
        assert q.get() == bytes(10)
        reservation = q.reserve(10)
        with reservation:
            reservation.abort()
        assert q.empty()
        assert clean(q)


def test_a_reservation_that_is_dropped_is_given_up() -> None:
    with SageQueue[Any]() as q:
        reservation = q.reserve(10)
        assert reserved(q) == 1
        del reservation
        assert clean(q)


def test_what_still_looks_at_a_committed_reservation_does_not_crash(queue_directory: pathlib.Path) -> None:
    q = SageQueue[Any]()
    with q.reserve(100_000) as buffer:
        other = numpy.frombuffer(buffer, "u1")
        other[:] = 7
    assert q.get() == bytes([7]) * 100_000
    q.close()
    other.sum()
    with pytest.raises(ValueError, match="released memoryview"):
        buffer[0]
    assert len(list(queue_directory.iterdir())) == 1
    del other
    assert list(queue_directory.iterdir()) == []


def test_a_reservation_that_something_else_looks_at_is_put_all_the_same() -> None:
    with SageQueue[Any](arena="1 MiB") as q:
        with q.reserve(100_000) as buffer:
            buffer[:] = bytes(100_000)
            export = (ctypes.c_char * 100_000).from_buffer(buffer)  # keeps the memoryview from being released
        assert q.get() == bytes(100_000)
        del export
        buffer.release()
        assert clean(q)


def test_a_reservation_that_was_given_up_keeps_its_room_until_nothing_looks_at_it() -> None:
    with SageQueue[Any]() as q:
        reservation = q.reserve(100_000)
        other = numpy.frombuffer(reservation.target, "u1")
        reservation.abort()
        del reservation
        assert reserved(q) == 1
        other[:] = 1  # nobody else's memory
        del other
        assert clean(q)


# ---- arrays ----


@pytest.mark.parametrize("shape", [(), 0, 7, (0, 3), (100, 200), [3, 4, 5], (1000, 1000)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
def test_an_array_that_is_filled_in_place_arrives_equal(shape: Any, order: Any, serializer: str) -> None:
    if serializer == "cloudpickle":
        pytest.importorskip("cloudpickle")
    expected = numpy.empty(shape, "f4", order=order)
    expected[...] = numpy.arange(expected.size).reshape(expected.shape)
    with SageQueue[Any](serializer=serializer) as q:
        for copy in (True, False):
            with q.reserve_array(shape, "f4", order) as array:
                assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
                assert array.ctypes.data % 64 == 0
                array[...] = expected
            got = q.get(copy=copy)
            assert type(got) is numpy.ndarray
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
            assert got.flags.f_contiguous == expected.flags.f_contiguous
            assert (got == expected).all()
            assert got.flags.writeable == copy or q.get_stats()["held"] == 0
            assert got.ctypes.data % 64 == 0
        del got, array
        assert clean(q)


@pytest.mark.parametrize("dtype", ["u1", ">i4", "M8[ns]", "S5", "U3", "c16", "?", [("a", "i4"), ("b", "f8", (3,))]], ids=str)
def test_an_array_of_any_type_without_references_can_be_filled_in_place(dtype: Any) -> None:
    with SageQueue[Any]() as q:
        expected = numpy.zeros(5000, dtype)
        with q.reserve_array(5000, dtype) as array:
            array[:] = expected
        got = q.get(copy=False)
        assert got.dtype == numpy.dtype(dtype)
        assert (got == expected).all()


@pytest.mark.parametrize("make", [lambda: numpy.ones((20, 30)), lambda: numpy.ones((20, 30)).T, lambda: numpy.ones((20, 30, 2))[::2]])
def test_reserve_like_takes_shape_type_and_order_from_an_array(make: Callable[[], Any]) -> None:
    model = make()
    with SageQueue[Any]() as q:
        with q.reserve_like(model) as array:
            assert (array.shape, array.dtype) == (model.shape, model.dtype)
            assert array.flags.f_contiguous == model.flags.f_contiguous
            numpy.copyto(array, model)
        assert (q.get() == model).all()


def test_the_array_handed_out_is_read_only_once_it_is_put() -> None:
    with SageQueue[Any]() as q:
        with q.reserve_array(50_000, "u1") as array:
            array[:] = 1
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
        assert (q.get() == 1).all()


def test_a_raw_queue_gives_the_bytes_of_an_array_filled_in_place() -> None:
    with SageQueue[Any](serializer="raw") as q:
        with q.reserve_array(1000, "<u4") as array:
            array[:] = numpy.arange(1000)
        assert q.get() == numpy.arange(1000, dtype="<u4").tobytes()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda q: q.reserve(-1), "nbytes=-1 is negative"),
        (lambda q: q.reserve_array(-1), "negative length"),
        (lambda q: q.reserve_array((3, -1)), "negative length"),
        (lambda q: q.reserve_array(3, object), "references to Python objects"),
        (lambda q: q.reserve_array(3, [("a", "i4"), ("b", object)]), "references to Python objects"),
        (lambda q: q.reserve_array(3, "f4", "K"), "order='K' is not known"),
        (lambda q: q.reserve(10, timeout=-1), "non-negative"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_a_value_error(call: Callable[[SageQueue[Any]], Any], text: str) -> None:
    with SageQueue[Any]() as q:
        with pytest.raises(ValueError, match=text):
            call(q)
        assert clean(q)


def test_without_an_arena_there_is_nothing_to_reserve() -> None:
    with SageQueue[Any](arena=0) as q:
        for call in (lambda: q.reserve(10), lambda: q.reserve_array(10)):
            with pytest.raises(ValueError, match="made without an arena, so there is nothing to reserve"):
                call()


def test_more_than_the_arena_can_hold_is_refused_at_once_with_both_sizes() -> None:
    with SageQueue[Any](arena="1 MiB") as q:
        with pytest.raises(sage_queue.MessageTooLarge, match=f"the message is {q.arena + 1 + 64} bytes, .* {q.arena} bytes; .* larger arena"):
            q.reserve(q.arena + 1)
        with q.reserve(q.arena - 64) as buffer:
            buffer[0] = 1
        assert len(q.get()) == q.arena - 64


# ---- waiting ----


def test_reserving_in_a_full_arena_waits_and_says_that_it_was_the_arena() -> None:
    with SageQueue[Any](arena="1 MiB", serializer="raw") as q:
        first = q.reserve(900_000)
        with pytest.raises(sage_queue.Full, match=rf"no run of 800000 bytes free in the arena of {q.arena} bytes \(9\d+ in use\)"):
            q.reserve(800_000, timeout=0.05)
        timer = threading.Timer(0.1, first.abort)
        timer.start()
        with q.reserve(800_000, timeout=SOON) as buffer:
            buffer[:] = bytes(800_000)
        timer.join()
        assert len(q.get()) == 800_000


def test_committing_into_a_full_queue_waits_and_then_gives_the_reservation_up() -> None:
    with SageQueue[Any](maxsize=1) as q:
        q.put("first")
        start = time.monotonic()
        with pytest.raises(sage_queue.Full, match="^Put operation timed out$"), q.reserve(100_000, timeout=0.3) as buffer:
            buffer[0] = 1
        assert time.monotonic() - start >= 0.3
        gc.collect()
        assert reserved(q) == 0
        with pytest.raises(sage_queue.Full, match="^Put operation timed out$"), q.reserve(100_000, timeout=0):
            pass
        gc.collect()
        assert (reserved(q), q.qsize()) == (0, 1)
        timer = threading.Timer(0.1, q.get)
        timer.start()
        with q.reserve_array(100_000, "u1") as array:
            array[:] = 5
        timer.join()
        assert (q.get() == 5).all()
        del array
        assert clean(q)


def test_ctrl_c_while_waiting_to_commit_puts_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with SageQueue[Any](maxsize=1) as q:
            q.put("first")
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt), q.reserve(100_000) as buffer:
                buffer[0] = 1
                timer.start()
            timer.join()
            gc.collect()
            assert (reserved(q), q.qsize()) == (0, 1)
            assert q.get() == "first"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_queue_that_is_shut_down_or_closed_takes_no_reservation() -> None:
    q = SageQueue[Any]()
    early = [q.reserve(100), q.reserve(100)]
    q.shutdown()
    with pytest.raises(sage_queue.ShutDown):
        q.reserve(100)
    with pytest.raises(sage_queue.ShutDown):
        early.pop().commit()
    q.close()
    for call in (lambda: q.reserve(100), early.pop().commit):
        with pytest.raises(sage_queue.QueueClosed):
            call()


def test_a_reservation_that_is_held_delays_nobody() -> None:
    with SageQueue[Any](capacity=65536) as q:
        kept = [q.reserve(1000 * (number + 1)) for number in range(50)]
        for number in range(20_000):
            q.put((number, "x" * (number % 300)))
            assert q.get()[0] == number
        assert reserved(q) == 50
        for number, reservation in enumerate(kept):
            reservation.target[:] = bytes([number]) * (1000 * (number + 1))
            reservation.commit()
        assert [q.get() for _ in range(50)] == [bytes([number]) * (1000 * (number + 1)) for number in range(50)]
        assert clean(q)


# ---- other processes ----


def test_the_reservation_of_a_killed_process_is_given_up(name: str, run_python: Run) -> None:
    code = """
import os, signal, sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
kept = q.reserve(100_000)
kept.target[:5] = b"never"
assert q.get_stats()["reserved"] == 1
os.kill(os.getpid(), signal.SIGKILL)
"""
    with SageQueue[Any](name) as q:
        assert run_python(code, name, check=False).returncode == -signal.SIGKILL
        with pytest.raises(sage_queue.Empty):
            q.get(timeout=0.3)
        assert clean(q)


def test_a_forked_child_drops_its_parents_reservation_and_the_parent_commits_it() -> None:
    fork = multiprocessing.get_context("fork")

    def child() -> None:
        nonlocal reservation
        try:
            reservation.commit()
        except sage_queue.QueueInvalid:
            pass
        else:
            os._exit(1)
        del reservation
        gc.collect()

    with SageQueue[Any]() as q:
        reservation = q.reserve(100_000)
        reservation.target[:] = b"x" * 100_000
        process = fork.Process(target=child)
        process.start()
        process.join(SOON)
        assert process.exitcode == 0
        assert reserved(q) == 1
        reservation.commit()
        assert q.get() == b"x" * 100_000


def _fill(q: SageQueue[Any], count: int, seed: int) -> None:
    for number in range(count):
        with q.reserve_array((50_000,), "u4") as array:
            array[:] = number * 10 + seed


def test_many_processes_fill_arrays_and_each_arrives_once_and_whole(context: Any) -> None:
    count = 60
    with SageQueue[Any](arena="8 MiB", maxsize=10) as q:
        writers = [context.Process(target=_fill, args=(q, count, seed)) for seed in range(3)]
        for writer in writers:
            writer.start()
        seen = []
        for number in range(3 * count):
            array = q.get(timeout=SOON, copy=number % 2 == 0)
            assert (array == array[0]).all()
            seen.append(int(array[0]))
        for writer in writers:
            writer.join(SOON)
        assert sorted(seen) == sorted(number * 10 + seed for number in range(count) for seed in range(3))
        del array
        assert clean(q)
