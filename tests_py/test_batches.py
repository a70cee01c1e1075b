"""Several items with one call: all or none where it says so, in order, and nothing lost whatever ends the call."""

from __future__ import annotations

import os
import pickle
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import WITH_HELPERS, Run

from sage_queue import Empty, Full, MessageTooLarge, QueueClosed, SageQueue, ShutDown, _native, open_queue

numpy = pytest.importorskip("numpy")

SEED = {"data": [1, 2, 3], "meta": "SAGE"}


@pytest.fixture
def q() -> Iterator[SageQueue[Any]]:
    with SageQueue[Any]() as q:
        yield q


def put_raw(q: SageQueue[Any], message: bytes) -> None:
    assert _native.put_bytes(q._handle, message) == 0


class Explosive:
    """Pickles; but whoever unpickles it gets a ZeroDivisionError."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


# ---- there and back ----


@pytest.mark.parametrize("count", [0, 1, 2, 15, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("serializer", ["pickle", "raw", "msgpack"])
def test_a_batch_of_any_size_comes_out_in_order(count: int, serializer: str) -> None:
    if serializer == "msgpack":
        pytest.importorskip("msgspec")
    items: list[Any] = [b"%d" % number * (number % 50) for number in range(count)]
    if serializer != "raw":
        items = [[number, "x" * (number % 50)] for number in range(count)]
    with SageQueue[Any](serializer=serializer) as q:
        for _ in range(3):
            q.put_many(items)
            assert q.qsize() == count
            got = q.get_many() if count else []
            assert got == items and type(got) is list
            assert q.empty()
        stats = q.get_stats()
        assert stats["puts"] == stats["gets"] == 3 * count


def test_a_batch_is_between_what_was_put_before_and_after_it(q: SageQueue[Any]) -> None:
    q.put("before")
    q.put_many(["a", "b"])
    q.put("after")
    q.put_many(("c",))
    assert [q.get(), *q.get_many(2), q.get(), q.get()] == ["before", "a", "b", "after", "c"]


def test_items_of_every_kind_of_message_go_in_one_batch(q: SageQueue[Any]) -> None:
    array = numpy.arange(50_000)
    items = [
        SEED,
        array,
        b"x" * 300,
        b"x" * 5000,
        bytearray(b"x" * 100_000),
        "",
        {1, 2},
        [array[:1000], {"again": array[:1000]}],
        "y" * 200_000,
        b"",
        int,
        None,
        [b"z" * 5000],
    ]
    for _ in range(3):
        q.put_many(items)
        got = q.get_many()
        assert [type(item) for item in got] == [type(item) for item in items]
        assert pickle.dumps(got[0]) == pickle.dumps(SEED) and (got[1] == array).all() and got[2:7] == items[2:7]
        assert (got[7][0] == array[:1000]).all() and (got[7][1]["again"] == array[:1000]).all() and got[8:] == items[8:]
    stats = q.get_stats()
    assert (stats["arena_used_bytes"], stats["leased"], stats["reserved"], stats["items"]) == (0, 0, 0, 0)


def test_what_arrays_a_batch_gives_are_their_getters_to_change(q: SageQueue[Any]) -> None:
    q.put_many([numpy.zeros(5000), numpy.zeros(50_000)])
    small, large = q.get_many()
    small += 1
    large += 1
    assert small.sum() == 5000 and large.sum() == 50_000


def test_any_iterable_is_a_batch(q: SageQueue[Any]) -> None:
    for items in ([1, 2], (1, 2), iter([1, 2]), (n for n in (1, 2)), {1: 0, 2: 0}, range(1, 3), numpy.array([1, 2])):
        q.put_many(items)
        assert q.get_many() == [1, 2]
    q.put_many("ab")
    assert q.get_many() == ["a", "b"]


@pytest.mark.parametrize("items", [None, 7, object()])
def test_what_is_no_iterable_is_a_type_error(q: SageQueue[Any], items: Any) -> None:
    for call in (q.put_many, q.put_nowait_batch):
        with pytest.raises(TypeError, match="iterable"):
            call(items)
    assert q.empty()


def test_an_iterator_that_raises_has_put_nothing_and_its_exception_passes(q: SageQueue[Any]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="^no more$"):
        q.put_many(items())
    assert q.empty() and q.get_stats()["used_bytes"] == 0


def test_an_iterator_may_use_the_queue(q: SageQueue[Any]) -> None:
    def items() -> Iterator[str]:
        q.put("from within")
        yield "one"
        q.put_many(["from", "within"])
        yield "two"

    q.put_many(items())
    assert q.get_many() == ["from within", "from", "within", "one", "two"]


def test_a_list_that_is_changed_by_pickling_its_items_crashes_nothing(q: SageQueue[Any]) -> None:
    class Shrinking:
        def __reduce__(self) -> Any:
            items.clear()
            return int, ()

    items: list[Any] = [Shrinking(), *range(100)]
    q.put_many(items)
    assert q.get_many() == [0]


def test_an_item_that_cannot_be_serialized_keeps_the_whole_batch_out(q: SageQueue[Any]) -> None:
    class Refusing:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    items = [1, 2, "x" * 10_000, numpy.zeros(5000), SEED, 6, Refusing(), 8]
    with pytest.raises(ValueError, match="^Failed to serialize item: not me$") as caught:
        q.put_many(items)
    assert type(caught.value.__cause__) is RuntimeError and not hasattr(caught.value, "put_items")
    assert q.empty() and q.get_stats()["puts"] == 0


def test_a_raw_queue_takes_buffers_of_any_kind_in_a_batch() -> None:
    with SageQueue[Any](serializer="raw") as q:
        q.put_many([b"a", bytearray(b"b" * 5000), memoryview(b"c"), numpy.zeros(3, "u1"), memoryview(b"abcdef")[::2], b"x" * 70_000])
        assert q.get_many() == [b"a", b"b" * 5000, b"c", bytes(3), b"ace", b"x" * 70_000]
        with pytest.raises(ValueError, match="takes bytes"):
            q.put_many([b"a", "b"])
        assert q.empty()


# ---- all or none ----


def test_a_batch_for_which_there_is_no_room_is_full_and_nothing_is_put() -> None:
    with SageQueue[int](maxsize=10) as q:
        q.put_many(range(7))
        for call in (q.put_nowait_batch, lambda items: q.put_many(items, False), lambda items: q.put_many(items, timeout=0.02)):
            with pytest.raises(Full) as caught:
                call([7, 8, 9, 10])
            assert isinstance(caught.value, queue.Full)
            assert q.qsize() == 7
        q.put_nowait_batch([7, 8, 9])
        assert q.full() and q.drain() == list(range(10))


def test_a_batch_waits_until_there_is_room_for_all_of_it() -> None:
    with SageQueue[int](maxsize=10) as q:
        q.put_many(range(8))
        done = threading.Event()

        def put() -> None:
            q.put_many([8, 9, 10, 11])
            done.set()

        thread = threading.Thread(target=put)
        thread.start()
        assert q.get() == 0
        assert not done.wait(0.1) and q.qsize() == 7  # three would fit
        assert q.get() == 1
        thread.join()
        assert q.drain() == list(range(2, 12))


def test_a_batch_with_too_little_room_in_the_arena_is_full_and_nothing_is_put() -> None:
    with SageQueue[Any](arena="1 MiB", capacity="64 KiB") as q:
        q.put(bytes(600_000))
        with pytest.raises(Full, match="arena"):
            q.put_nowait_batch([1, bytes(200_000), bytes(300_000)])
        assert q.qsize() == 1 and q.get_stats()["reserved"] == 0
        q.put_nowait_batch([1, bytes(200_000), bytes(100_000)])
        assert [len(item) if item != 1 else item for item in q.get_many()] == [600_000, 1, 200_000, 100_000]
        assert q.get_stats()["arena_used_bytes"] == 0


BEYOND = {
    "maxsize": ({"maxsize": 10}, list(range(11))),
    "capacity": ({"capacity": 4096}, list(range(33))),
    "arena": ({"arena": "1 MiB", "capacity": "64 KiB"}, [bytes(400_000)] * 3),
}


@pytest.mark.parametrize("options, items", BEYOND.values(), ids=BEYOND)
def test_a_batch_that_can_never_be_in_the_queue_at_once_says_so_and_nothing_is_put(options: Any, items: list[Any]) -> None:
    with SageQueue[Any](**options) as q:
        for how in ({"block": False}, {"timeout": 0}, {"timeout": 5}):
            with pytest.raises(MessageTooLarge, match=f"batch of {len(items)} items .* can never be in the queue at once.*; put fewer"):
                q.put_many(items, **how)
        with pytest.raises(Full, match="can never be in it at once"):
            q.put_nowait_batch(items)
        assert q.empty() and q.get_stats()["puts"] == 0
        q.put_nowait_batch(items[:2])
        assert q.drain() == items[:2]


@pytest.mark.parametrize("options, items", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("timeout", [None, float("inf")])
def test_without_a_bound_on_the_wait_such_a_batch_goes_in_as_parts(options: Any, items: list[Any], timeout: Any) -> None:
    with SageQueue[Any](**options) as q:
        items = items * 20
        thread = threading.Thread(target=q.put_many, args=(items,), kwargs={"timeout": timeout})
        thread.start()
        got = []
        while len(got) < len(items):
            got += q.get_many(7)
        thread.join()
        assert got == items and q.empty()
        assert q.get_stats()["arena_used_bytes"] == 0


def test_an_item_that_can_never_fit_keeps_the_whole_batch_out() -> None:
    with SageQueue[Any](arena="1 MiB", capacity="64 KiB") as q:
        for call in (q.put_many, q.put_nowait_batch, lambda items: q.put_many(items, timeout=5)):
            with pytest.raises(MessageTooLarge, match="^the message is .* bytes, and the largest"):
                call([*range(10_000), bytes(2_000_000)])
        assert q.empty() and q.get_stats()["puts"] == 0


def end_with_shutdown(q: SageQueue[Any]) -> None:
    q.shutdown()


def end_with_close(q: SageQueue[Any]) -> None:
    q.close()


@pytest.mark.parametrize(("end", "error"), [(end_with_shutdown, ShutDown), (end_with_close, QueueClosed)])
def test_a_batch_in_parts_that_is_ended_says_how_many_items_were_put(name: str, end: Any, error: Any) -> None:
    with SageQueue[int](name, maxsize=10) as q, open_queue(name) as other:
        caught: list[Exception] = []

        def put() -> None:
            try:
                q.put_many(range(100))
            except Exception as error:
                caught.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        got = [other.get() for _ in range(20)]  # the first parts are in
        end(q)
        thread.join()
        (exception,) = caught
        assert type(exception) is error
        got += other.drain()
        assert got == list(range(exception.put_items)) and 20 <= exception.put_items < 100


def test_a_batch_in_parts_that_a_handler_ends_says_how_many_items_were_put() -> None:
    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("alarm")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with SageQueue[int](maxsize=10) as q:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError) as caught:
                q.put_many(range(100))
            assert caught.value.put_items == q.qsize() > 0  # type: ignore[attr-defined]
            assert q.drain() == list(range(caught.value.put_items))  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_batches_of_several_producers_are_never_mixed_within_what_can_be_in_the_queue_at_once() -> None:
    """Each is claimed by itself, so others may come in between; but all of it is there, in order, and together it is complete."""
    with SageQueue[Any](capacity=8192) as q:

        def put(producer: int) -> None:
            for batch in range(200):
                q.put_many([(producer, batch, number) for number in range(10)])

        threads = [threading.Thread(target=put, args=(producer,)) for producer in range(3)]
        for thread in threads:
            thread.start()
        got = []
        while len(got) < 6000:
            got += q.get_many(100)
        for thread in threads:
            thread.join()
        for producer in range(3):
            assert [item[1:] for item in got if item[0] == producer] == [(batch, number) for batch in range(200) for number in range(10)]


# ---- the bounds of a get ----


def test_get_many_takes_what_is_there_and_not_more_than_max_items(q: SageQueue[Any]) -> None:
    q.put_many(range(200))
    assert q.get_many(1) == [0]
    assert q.get_many(max_items=70) == list(range(1, 71))
    assert q.get_many(1000) == list(range(71, 200))
    q.put_many(range(3000))
    assert len(q.get_many()) == 1024
    assert len(q.get_many(2500)) == 1976


def test_get_many_takes_no_more_than_max_bytes_but_at_least_one() -> None:
    with SageQueue[bytes](serializer="raw") as q:
        q.put_many([bytes(10)] * 200)
        assert len(q.get_many(max_bytes=99)) == 9
        assert len(q.get_many(max_bytes=100)) == 10
        assert len(q.get_many(max_bytes=1)) == 1
        assert len(q.get_many(max_bytes=0)) == 1
        assert len(q.get_many(max_bytes=1000)) == 100
        assert len(q.get_many(5, 1000)) == 5
        assert len(q.get_many(max_bytes=1 << 60)) == 74
        q.put_many([bytes(200_000), bytes(100), bytes(200_000), b""])
        assert [len(item) for item in q.get_many(max_bytes=1)] == [200_000]
        assert [len(item) for item in q.get_many(max_bytes=150_000)] == [100]
        assert [len(item) for item in q.get_many(max_bytes=200_000)] == [200_000]
        assert q.get_many(max_bytes=0) == [b""]


@pytest.mark.parametrize("size", [100, 100_000], ids=["in the ring", "in the arena"])
def test_what_did_not_fit_into_max_bytes_keeps_its_place_and_its_attempts(size: int) -> None:
    with SageQueue[bytes](serializer="raw") as q:
        q.put_many([b"%d" % number * size for number in range(8)])
        assert len(q.get_many(max_bytes=3 * size + 1)) == 3
        assert len(q.get_many(max_bytes=1)) == 1
        for number in range(4, 8):
            with q.lease() as message:
                assert (message.value[:1], message.attempts) == (b"%d" % number, 1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_items": 0}, ValueError),
        ({"max_items": -1}, ValueError),
        ({"max_bytes": -1}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"max_items": "3"}, TypeError),
        ({"max_items": 1.5}, TypeError),
        ({"max_bytes": 1.5}, TypeError),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused_and_nothing_is_taken(q: SageQueue[Any], arguments: Any, error: Any) -> None:
    q.put(1)
    with pytest.raises(error):
        q.get_many(**arguments)
    assert q.get_many() == [1]


def test_get_many_waits_for_one_item_and_no_longer(q: SageQueue[Any]) -> None:
    with pytest.raises(Empty, match="^Queue is empty$"):
        q.get_many(block=False)
    with pytest.raises(Empty, match="^Get operation timed out$"):
        q.get_many(timeout=0.01)
    timer = threading.Timer(0.05, q.put, ("late",))
    timer.start()
    assert q.get_many(10) == ["late"]
    timer.join()


# ---- get_nowait_batch ----


def test_a_get_of_so_many_gets_them_or_none(q: SageQueue[Any]) -> None:
    assert q.get_nowait_batch(0) == []
    for there in (0, 1, 2):
        assert q.qsize() == there
        with pytest.raises(Empty):
            q.get_nowait_batch(3)
        q.put(there)
    assert q.get_nowait_batch(3) == [0, 1, 2]
    q.put_many(range(500))
    assert q.get_nowait_batch(300) == list(range(300))
    assert q.get_nowait_batch(200) == list(range(300, 500))


@pytest.mark.parametrize(("num_items", "error"), [("3", TypeError), (None, TypeError), (1.0, TypeError), (-1, ValueError)])
def test_a_number_of_items_that_makes_no_sense_is_refused(q: SageQueue[Any], num_items: Any, error: Any) -> None:
    q.put(1)
    with pytest.raises(error, match="num_items"):
        q.get_nowait_batch(num_items)
    assert q.qsize() == 1


def test_a_get_of_so_many_that_lost_a_race_leaves_the_others_in_order_and_untouched(q: SageQueue[Any]) -> None:
    items = [numpy.zeros(50_000).tobytes() if number % 3 == 1 else number for number in range(9)]
    q.put_many([item for item in items if type(item) is int])
    q.qsize = lambda: 100  # type: ignore[method-assign]  # somebody took them in the meantime
    for _ in range(3):
        with pytest.raises(Empty):
            q.get_nowait_batch(100)
    del q.qsize
    assert q.qsize() == 6
    with q.lease() as message:
        assert (message.value, message.attempts) == (0, 1)
    assert q.get_nowait_batch(5) == [2, 3, 5, 6, 8]
    q.put_many([bytes([number]) * 100_000 for number in range(4)])
    q.qsize = lambda: 100  # type: ignore[method-assign]
    with pytest.raises(Empty):
        q.get_nowait_batch(5)
    del q.qsize
    with q.lease() as message:
        assert (message.value[:1], message.attempts) == (b"\0", 1)
    assert [item[:1] for item in q.get_nowait_batch(3)] == [b"\1", b"\2", b"\3"]


def test_competing_gets_of_so_many_take_each_item_once(q: SageQueue[Any]) -> None:
    count, got = 6000, [[], [], []]  # type: ignore[var-annotated]

    def take(mine: list[list[int]]) -> None:
        size = 1
        while True:
            try:
                mine.append(q.get_nowait_batch(size))
                size = size % 23 + 1
            except Empty:
                size = max(1, size // 2)
                time.sleep(0)
            except ShutDown:
                return

    threads = [threading.Thread(target=take, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for start in range(0, count, 100):
        q.put_many(range(start, start + 100))
    q.shutdown()
    for thread in threads:
        thread.join()
    assert sorted(item for mine in got for batch in mine for item in batch) == list(range(count))


# ---- messages that cannot be decoded ----

BAD = b"\4\xff"  # plain data of an unknown kind


def put_with_bad_ones(q: SageQueue[Any], *bad: int) -> None:
    for number in range(10):
        if number in bad:
            put_raw(q, BAD)
        else:
            q.put(number)


def test_a_first_message_that_cannot_be_decoded_is_consumed_and_the_others_are_untouched(q: SageQueue[Any]) -> None:
    put_with_bad_ones(q, 0)
    with pytest.raises(ValueError, match="^Failed to deserialize item: malformed"):
        q.get_many()
    assert q.qsize() == 9
    with q.lease() as message:
        assert (message.value, message.attempts) == (1, 1)
    assert q.get_many() == list(range(2, 10))


def test_a_later_message_that_cannot_be_decoded_ends_the_batch_and_the_next_get_meets_it(q: SageQueue[Any]) -> None:
    put_with_bad_ones(q, 4, 5)
    q.put(Explosive())
    assert q.get_many() == [0, 1, 2, 3]
    for get in (q.get_many, q.get):
        with pytest.raises(ValueError, match="^Failed to deserialize item: malformed"):
            get()
    assert q.get_many() == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="division by zero"):
        q.get_many()
    assert q.empty() and q.get_stats()["leased"] == 0


def test_a_get_of_so_many_with_one_that_cannot_be_decoded_takes_that_and_leaves_the_others(q: SageQueue[Any]) -> None:
    put_with_bad_ones(q, 4)
    with pytest.raises(ValueError, match="^Failed to deserialize item"):
        q.get_nowait_batch(8)
    assert q.qsize() == 9
    assert q.get_nowait_batch(9) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_in_a_batch_each_message_has_its_attempts_and_not_those_of_others(name: str) -> None:
    with SageQueue[Any](name, max_attempts=2, dead_letter=f"{name}-dead") as q:
        put_with_bad_ones(q, 0, 5)
        for _ in range(2):
            with pytest.raises(ValueError, match="^Failed to deserialize item"):
                q.get_many()
        assert q.get_many() == [1, 2, 3, 4]
        for _ in range(2):
            with pytest.raises(ValueError, match="^Failed to deserialize item"):
                q.get_many()
        assert q.get_many(block=False) == [6, 7, 8, 9]
        with pytest.raises(Empty):
            q.get_many(block=False)
        q.put("last")
        assert q.get_nowait_batch(1) == ["last"]
    with open_queue(f"{name}-dead") as dead:
        assert dead.qsize() == 2
        dead.destroy()


def test_a_get_of_so_many_takes_others_in_place_of_what_has_had_its_attempts(name: str) -> None:
    with SageQueue[Any](name, max_attempts=1, dead_letter=f"{name}-dead") as q:
        put_with_bad_ones(q, 0)
        with pytest.raises(ValueError, match="^Failed to deserialize item"):
            q.get()
        assert q.qsize() == 10
        assert q.get_nowait_batch(9) == list(range(1, 10))
    with open_queue(f"{name}-dead") as dead:
        assert dead.qsize() == 1
        dead.destroy()


def test_a_handler_that_raises_while_a_batch_is_decoded_leaves_all_of_it_in_order(q: SageQueue[Any]) -> None:
    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("alarm")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for get in (q.get_many, lambda: q.get_nowait_batch(5)):
            Interrupting.left = 1
            q.put_many([1, "two" * 5000, Interrupting(), "four", {5}])
            with pytest.raises(TimeoutError):
                get()
            assert q.qsize() == 5
            with q.lease() as message:
                assert (message.value, message.attempts) == (1, 1)
            assert q.get_nowait_batch(4) == ["two" * 5000, 3, "four", {5}]
    finally:
        signal.signal(signal.SIGUSR1, before)


class Interrupting:
    """Its unpickling is interrupted as often as asked."""

    left = 0

    def __reduce__(self) -> Any:
        return interrupt, ()


def interrupt() -> int:
    if Interrupting.left:
        Interrupting.left -= 1
        signal.raise_signal(signal.SIGUSR1)
    return 3


# ---- the end of a queue ----


def test_iteration_gives_all_items_and_ends_at_shutdown(q: SageQueue[Any]) -> None:
    def put() -> None:
        for start in range(0, 1000, 50):
            q.put_many(range(start, start + 50))
        q.shutdown()

    thread = threading.Thread(target=put)
    thread.start()
    assert list(q) == list(range(1000))
    thread.join()
    assert list(q) == []


def test_an_iteration_that_is_broken_off_has_taken_only_what_it_gave(q: SageQueue[Any]) -> None:
    q.put_many(range(10))
    for item in q:
        if item == 3:
            break
    assert q.drain() == list(range(4, 10))


def test_iteration_over_a_closed_queue_says_so(q: SageQueue[Any]) -> None:
    q.put(1)
    items = iter(q)
    assert next(items) == 1
    q.close()
    with pytest.raises(QueueClosed):
        next(items)


def test_drain_takes_what_is_there_and_does_not_wait(q: SageQueue[Any]) -> None:
    assert q.drain() == []
    q.put_many(range(5000))
    assert q.drain() == list(range(5000))
    assert q.drain() == []
    q.put_many(["left", "over"])
    q.shutdown()
    assert q.drain() == ["left", "over"]
    assert q.drain() == []
    q.close()
    with pytest.raises(QueueClosed):
        q.drain()


def test_what_is_left_of_a_queue_that_was_shut_down_comes_out_and_then_shut_down(q: SageQueue[Any]) -> None:
    q.put_many(range(5))
    q.shutdown()
    for call in (q.put_many, q.put_nowait_batch):
        with pytest.raises(ShutDown):
            call([1])
    assert q.get_many(3) == [0, 1, 2]
    with pytest.raises(Empty):
        q.get_nowait_batch(3)
    assert q.get_nowait_batch(2) == [3, 4]
    for get in (q.get_many, lambda: q.get_nowait_batch(1)):
        with pytest.raises(ShutDown):
            get()


def test_a_shutdown_at_once_throws_away_and_says_so_to_batches(q: SageQueue[Any]) -> None:
    q.put_many(range(5))
    q.shutdown(immediate=True)
    for call in (q.get_many, lambda: q.put_many([1]), lambda: q.get_nowait_batch(1)):
        with pytest.raises(ShutDown):
            call()
    assert q.drain() == []
    q.join()


def test_every_batch_call_on_a_closed_queue_says_so(q: SageQueue[Any]) -> None:
    q.close()
    for call in (
        q.get_many,
        lambda: q.get_nowait_batch(1),
        lambda: q.put_many([1]),
        lambda: q.put_many([]),
        lambda: q.put_nowait_batch([1]),
        q.drain,
        lambda: next(iter(q)),
    ):
        with pytest.raises(QueueClosed):
            call()


@pytest.mark.parametrize("call", ["get_many", "put_many"])
def test_closing_wakes_a_batch_call_that_waits(call: str) -> None:
    with SageQueue[int](maxsize=2) as q:
        if call == "put_many":
            q.put_many([1, 2])
        timer = threading.Timer(0.1, q.close)
        timer.start()
        with pytest.raises(QueueClosed):
            q.get_many() if call == "get_many" else q.put_many([3])
        timer.join()


def test_each_item_of_a_batch_is_a_task(q: SageQueue[Any]) -> None:
    q.put_many(range(3))
    q.get_many()
    for _ in range(3):
        q.task_done()
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


# ---- between processes, through signals and kills ----

DYING = """
import os, signal, sys
from sage_queue import open_queue
q = open_queue(sys.argv[1])
die = True
q.get_many(50) if sys.argv[2] == "get_many" else q.get_nowait_batch(50)
print("survived")
"""


class Deadly:
    """Who unpickles it as a program that has said `die` is killed."""

    def __reduce__(self) -> Any:
        code = "getattr(__import__('sys').modules['__main__'], 'die', False) and __import__('os').kill(__import__('os').getpid(), 9) or 'alive'"
        return eval, (code,)


@pytest.mark.parametrize("call", ["get_many", "get_nowait_batch"])
def test_all_of_a_batch_whose_getter_is_killed_while_it_decodes_comes_to_the_next_one(name: str, run_python: Run, call: str) -> None:
    with SageQueue[Any](name) as q:
        items: list[Any] = [[number, "x" * (number * 50)] for number in range(100)]
        items[30] = [30, Deadly()]
        q.put_many(items)
        for _ in range(3):
            assert run_python(DYING, name, call, check=False).returncode == -signal.SIGKILL
        items[30] = [30, "alive"]
        got: list[Any] = []
        while len(got) < len(items):  # the dead one's are found when there is nothing else
            got += q.get_many()
        assert sorted(got) == items
        assert q.empty() and q.get_stats()["leased"] == 0


CONSUMER = """
import sys
from helpers import Storm
from sage_queue import SageQueue, ShutDown

def body():
    extend = seen.append
    while True:
        items = q.get_many(size)
        extend(items)

q, seen, size, done = SageQueue(sys.argv[1]), [], int(sys.argv[3]), False
storm = Storm(body)
while not done:
    try:
        body()
    except KeyboardInterrupt:
        pass
    except ShutDown:
        done = True
print(storm.end())
print([item[0] for items in seen for item in items] == list(range(int(sys.argv[2]))))
"""

PRODUCER = """
import sys
from helpers import Storm
from sage_queue import SageQueue

def body():
    global number
    while number < count:
        q.put_many(range(number, number + 10))
        number += 10

q, number, count = SageQueue(sys.argv[1]), 0, int(sys.argv[2])
storm = Storm(body)
while number < count:
    try:
        body()
    except KeyboardInterrupt:
        pass
print(storm.end())
q.shutdown()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="in 3.10 signal handlers may run at any instruction, so also behind the call")
@pytest.mark.parametrize(("count", "padding"), [(100_000, b""), (20_000, b"x" * 9000), (30_000, 1j)], ids=["small", "large", "pickled"])
def test_a_storm_of_ctrl_c_on_a_consumer_of_batches_loses_no_message_and_brings_none_twice(
    name: str, run_python: Run, count: int, padding: Any
) -> None:
    with SageQueue[Any](name, capacity="1 MiB") as q:

        def put_all() -> None:
            for number in range(0, count, 100):
                q.put_many([(number + n, padding) for n in range(100)])
            q.shutdown()

        thread = threading.Thread(target=put_all)
        thread.start()
        hits, verdict = run_python(CONSUMER, name, str(count), "30", **WITH_HELPERS).stdout.split()
        thread.join()
        assert int(hits) > 20
        assert verdict == "True"
        assert q.get_stats()["gets"] == count


@pytest.mark.skipif(sys.version_info < (3, 11), reason="in 3.10 signal handlers may run at any instruction, so also behind the call")
def test_a_storm_of_ctrl_c_on_a_producer_of_batches_loses_no_message_and_puts_none_twice(name: str, run_python: Run) -> None:
    seen: list[int] = []
    with SageQueue[int](name, maxsize=100) as q:
        thread = threading.Thread(target=lambda: seen.extend(q))
        thread.start()
        (hits,) = run_python(PRODUCER, name, "100000", **WITH_HELPERS).stdout.split()
        thread.join()
    assert int(hits) > 20
    assert seen == list(range(100_000))


@pytest.mark.parametrize("serializer", ["pickle", "raw"])
def test_batches_of_many_processes_arrive_complete_and_in_order(name: str, context: Any, serializer: str) -> None:
    with SageQueue[bytes](name, capacity="256 KiB", serializer=serializer) as q:
        producers = [context.Process(target=put_batches, args=(q, producer, 5000)) for producer in range(2)]
        results = context.SimpleQueue()
        consumers = [context.Process(target=get_batches, args=(q, results)) for _ in range(2)]
        for process in producers + consumers:
            process.start()
        for process in producers:
            process.join()
        q.shutdown()
        got = [results.get() for _ in consumers]
        for process in consumers:
            process.join()
        assert [process.exitcode for process in producers + consumers] == [0] * 4
        for producer in range(2):
            of_each = [[number for who, number in mine if who == producer] for mine in got]
            assert all(numbers == sorted(numbers) for numbers in of_each)
            assert sorted(of_each[0] + of_each[1]) == list(range(5000))


def put_batches(q: SageQueue[bytes], producer: int, count: int) -> None:
    chance, number = random.Random(producer), 0
    while number < count:
        batch = min(chance.randint(1, 99), count - number)
        q.put_many(b"%d %d %s" % (producer, n, b"x" * chance.randint(0, 500)) for n in range(number, number + batch))
        number += batch


def get_batches(q: SageQueue[bytes], results: Any) -> None:
    chance, mine = random.Random(os.getpid()), []
    try:
        while True:
            for item in q.get_many(chance.randint(1, 200), chance.choice([None, 1000, 100_000])):
                who, number, _ = item.split(b" ", 2)
                mine.append((int(who), int(number)))
    except ShutDown:
        results.put(mine)
