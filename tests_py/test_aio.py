"""asyncio: tasks wait for a queue without a thread, in turn, and whatever is cancelled, no item is lost or comes twice."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import multiprocessing
import os
import pathlib
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

import pytest
from helpers import SOON, Run, in_a_fork

from sage_queue import Empty, Full, MessageTooLarge, QueueClosed, SageQueue, ShutDown

T = TypeVar("T")
LONGEST_S = 100.0
A_WHILE = 0.05  # for what should not happen
Main = Callable[[], Coroutine[Any, Any, Any]]
fork: Any = multiprocessing.get_context("fork")


@contextlib.contextmanager
def a_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncio.AbstractEventLoop]:
    """asyncio.run for any kind of loop and any Python: what is left running is cancelled."""
    loop = new_loop()
    problems: list[Any] = []
    loop.set_exception_handler(lambda loop, context: problems.append(context))
    try:
        yield loop
        loop.run_until_complete(cancelled(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert problems == []


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel them and see them end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], Any]:
    """Run a coroutine function in a loop of this kind."""
    new_loop = asyncio.new_event_loop if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop

    def run(main: Main) -> Any:
        with a_loop(new_loop) as loop:  # in uvloop, the watchdog's exception would be logged and forgotten
            return loop.run_until_complete(asyncio.wait_for(main(), LONGEST_S))

    return run


def run_plainly(main: Main) -> Any:
    with a_loop(asyncio.new_event_loop) as loop:
        return loop.run_until_complete(main())


async def soon(what: Awaitable[T]) -> T:
    """Its result, which comes."""
    return await asyncio.wait_for(what, SOON)


async def turns(count: int = 20) -> None:
    """Let everybody run who can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(question: Callable[[], Any]) -> None:
    give_up = time.monotonic() + SOON
    while not question():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.002)


async def outcome(what: Awaitable[Any]) -> Any:
    """The result, or the class of the exception.  (Where Ray's queue is loaded, Empty and Full are Ray's children of them.)"""
    try:
        return await what
    except (Empty, Full) as error:
        return Empty if isinstance(error, Empty) else Full
    except (Exception, asyncio.CancelledError) as error:
        return type(error)


def tasks_of(*coroutines: Coroutine[Any, Any, T]) -> list[asyncio.Task[T]]:
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


def drained(q: SageQueue[T]) -> list[T]:
    items = []
    while True:
        try:
            items.append(q.get_nowait())
        except (Empty, ShutDown):
            return items


def finish(*processes: Any) -> None:
    for process in processes:
        process.join(SOON)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- putting and getting ----


def test_what_can_be_done_at_once_is_done_at_once(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any](maxsize=10) as q:
            await q.put_async({"data": [1, 2, 3]})
            assert await q.get_async() == {"data": [1, 2, 3]}
            await q.put_many_async(iter([1, 2, 3]))
            await q.put_async(4, False)
            await q.put_async(5, timeout=SOON)
            q.put_nowait(6)
            assert q.qsize() == 6
            assert await q.get_many_async(2) == [1, 2]
            assert await q.get_async(block=False) == 3
            assert await q.get_async(True, 0) == 4
            assert q.get_nowait() == 5
            assert await q.get_many_async() == [6]
            await q.put_many_async([])
            assert q.empty()

    run(main)


@pytest.mark.parametrize("who", ["task", "thread", "process"])
def test_a_waiting_get_is_given_what_is_put_later_by_a(who: str, run: Any) -> None:
    async def main() -> None:
        with SageQueue[str]() as q:
            (waiting,) = tasks_of(q.get_async())
            await asyncio.sleep(A_WHILE)
            assert not waiting.done()
            with later(who, q.put, "news", put_async=q.put_async):
                assert await soon(waiting) == "news"
            assert q.empty()

    run(main)


@pytest.mark.parametrize("who", ["task", "thread", "process"])
def test_a_waiting_put_goes_on_when_there_is_room_made_by_a(who: str, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=1) as q:
            q.put(1)
            (waiting,) = tasks_of(q.put_async(2))
            await asyncio.sleep(A_WHILE)
            assert not waiting.done() and q.qsize() == 1
            with later(who, q.get, put_async=q.get_async):
                await soon(waiting)
            assert drained(q) == [2]

    run(main)


@contextlib.contextmanager
def later(who: str, call: Callable[..., Any], *arguments: Any, put_async: Callable[..., Any]) -> Iterator[None]:
    """Somebody else does it."""
    if who == "task":
        (task,) = tasks_of(put_async(*arguments))
        yield
        assert task.done()
        return
    other: Any = (threading.Thread if who == "thread" else fork.Process)(target=call, args=arguments)
    other.start()
    yield
    other.join(SOON)
    assert not other.is_alive()


def test_large_items_wait_for_room_in_the_arena_and_come_whole(run: Any) -> None:
    async def main() -> None:
        with SageQueue[bytes](arena="1 MiB") as q:
            puts = tasks_of(*(q.put_async(bytes([place]) * 600_000) for place in range(5)))
            await turns()
            assert [task.done() for task in puts] == [True] + [False] * 4
            for place in range(5):
                assert await soon(q.get_async()) == bytes([place]) * 600_000
            await soon(asyncio.gather(*puts))

    run(main)


def test_a_get_without_a_copy_looks_at_the_memory_of_the_queue() -> None:
    numpy = pytest.importorskip("numpy")

    async def main() -> None:
        with SageQueue[Any]() as q:
            (waiting,) = tasks_of(q.get_async(copy=False))
            await turns()
            await q.put_async(numpy.arange(100_000))
            view = await soon(waiting)
            assert not view.flags.writeable and view[-1] == 99_999
            assert q.get_stats()["held"] == 1
            del view, waiting
            await turns()  # the step that a task's end has woken keeps that task, with its result
            assert q.get_stats()["held"] == 0

    run_plainly(main)


@pytest.mark.parametrize("serializer", ["raw", "msgpack", "cloudpickle"])
def test_other_serializers_do_as_they_do_elsewhere(serializer: str) -> None:
    for module in {"msgpack": ["msgspec"], "cloudpickle": ["cloudpickle"]}.get(serializer, []):
        pytest.importorskip(module)

    async def main() -> None:
        with SageQueue[Any](serializer=serializer, maxsize=1) as q:
            puts = tasks_of(q.put_async(b"one"), q.put_async(b"two"))
            assert [await soon(q.get_async()), await soon(q.get_async())] == [b"one", b"two"]
            await asyncio.gather(*puts)

    run_plainly(main)


# ---- batches ----


def test_get_many_waits_for_one_and_takes_what_is_there_up_to_its_bounds(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any]() as q:
            (waiting,) = tasks_of(q.get_many_async(3))
            await asyncio.sleep(A_WHILE)
            assert not waiting.done()
            q.put_many(range(5))
            assert await soon(waiting) == [0, 1, 2]
            assert await q.get_many_async() == [3, 4]
            q.put_many([bytes(1000)] * 10)
            few = await q.get_many_async(max_bytes=3500)
            assert 1 <= len(few) <= 3
            assert len(few) + len(await q.get_many_async()) == 10
            assert await outcome(q.get_many_async(block=False)) is Empty
            assert await outcome(q.get_many_async(timeout=0.01)) is Empty

    run(main)


def test_put_many_waits_for_room_for_all_and_puts_all_at_once(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=4) as q:
            q.put_many([0, 1, 2])
            (waiting,) = tasks_of(q.put_many_async([3, 4, 5]))
            for left in (3, 2):
                await asyncio.sleep(A_WHILE)
                assert not waiting.done() and q.qsize() == left
                assert q.get() == 3 - left
            await soon(waiting)
            assert drained(q) == [2, 3, 4, 5]
            q.put(6)
            assert await outcome(q.put_many_async([7, 8, 9, 10], block=False)) is Full
            assert await outcome(q.put_many_async([7, 8, 9, 10], timeout=0.01)) is Full
            assert drained(q) == [6]

    run(main)


def test_a_batch_larger_than_the_queue_goes_in_as_parts_and_in_order(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any](maxsize=4) as q:
            (waiting,) = tasks_of(q.put_many_async(range(50)))
            assert [await soon(q.get_async()) for _ in range(50)] == list(range(50))
            await soon(waiting)
            assert await outcome(q.put_many_async(range(5), block=False)) is MessageTooLarge
            assert await outcome(q.put_many_async(range(5), timeout=1)) is MessageTooLarge
            assert q.empty()
            both = tasks_of(q.put_many_async(["a"] * 21), q.put_many_async(["b"] * 21))
            assert [await soon(q.get_async()) for _ in range(42)] == ["a"] * 21 + ["b"] * 21
            await soon(asyncio.gather(*both))

    run(main)


@pytest.mark.parametrize("end", ["cancel", "shutdown", "close"])
def test_a_batch_that_is_ended_between_its_parts_says_how_many_items_were_put(end: str, name: str, run: Any) -> None:
    async def main() -> None:
        q = SageQueue[int](name, maxsize=4)
        with SageQueue[int](name) as other:
            noted: list[int] = []

            async def put() -> None:
                try:
                    await q.put_many_async(range(50))
                except (asyncio.CancelledError, ShutDown, QueueClosed) as error:
                    noted.append(error.put_items)  # type: ignore[union-attr]

            (waiting,) = tasks_of(put())
            got = [await soon(other.get_async()) for _ in range(7)]
            await turns()
            if end == "cancel":
                waiting.cancel()
            else:
                getattr(q, end)()
            await soon(waiting)
            got += drained(other)
            assert [got] == [list(range(number)) for number in noted]
            assert 7 <= len(got) < 50
            q.close()

    run(main)


# ---- outcomes ----


def test_a_call_that_cannot_be_raises_what_the_blocking_call_raises(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any](maxsize=2, arena="1 MiB") as q:
            for call in (q.get_async, q.get_many_async):
                with pytest.raises(Empty, match="Queue is empty"):
                    await call(block=False)
                with pytest.raises(Empty, match="Get operation timed out"):
                    await call(timeout=0.01)
                with pytest.raises(ValueError, match="timeout"):
                    await call(timeout=-1)
            with pytest.raises(ValueError, match="timeout"):
                await q.put_async(1, timeout=-1)
            with pytest.raises(ValueError, match="Failed to serialize item"):
                await q.put_async(lambda: None)
            with pytest.raises(MessageTooLarge):
                await q.put_async(bytes(2_000_000))
            with pytest.raises(ValueError, match="Failed to serialize item"):
                await q.put_many_async([1, lambda: None])
            assert q.empty()
            q.put_many(["first", "second"])
            with pytest.raises(Full, match="Queue is full"):
                await q.put_async("third", block=False)
            with pytest.raises(Full, match="Put operation timed out"):
                await q.put_async("third", timeout=0.01)
            assert drained(q) == ["first", "second"]

    run(main)


@pytest.mark.parametrize("timeout", [0.0, 0.01, 0.2])
def test_a_timeout_is_not_over_before_its_time_and_the_loop_goes_on_meanwhile(timeout: float, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=1) as full, SageQueue[int]() as empty:
            full.put(1)
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            (ticker,) = tasks_of(tick())
            for call, kind in (
                (empty.get_async(timeout=timeout), Empty),
                (empty.get_many_async(timeout=timeout), Empty),
                (full.put_async(2, timeout=timeout), Full),
                (full.put_many_async([2], timeout=timeout), Full),
            ):
                start, ticks_before = time.monotonic(), ticks
                with pytest.raises(kind):
                    await call
                assert time.monotonic() - start >= timeout
                assert timeout == 0 or ticks > ticks_before
            ticker.cancel()
            assert drained(full) == [1]

    run(main)


def test_one_who_times_out_leaves_his_place_to_the_next(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            waiting = tasks_of(q.get_async(timeout=0.05), q.get_async(), q.get_async(timeout=SOON))
            await until(waiting[0].done)
            assert isinstance(waiting[0].exception(), Empty)
            q.put(1)
            q.put(2)
            assert await soon(asyncio.gather(*waiting[1:])) == [1, 2]

    run(main)


class Unreadable:
    def __init__(self, error: type[Exception] = RuntimeError) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (self.error,)


def fail(error: type[BaseException]) -> None:
    raise error("unreadable")


def test_an_item_that_cannot_be_decoded_is_an_error_of_one_task_and_the_others_go_on(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any]() as q:
            waiting = tasks_of(*(outcome(q.get_async()) for _ in range(5)))
            await turns()
            for item in (1, Unreadable(), 2, Unreadable(StopIteration), 3):
                q.put(item)
            assert await soon(asyncio.gather(*waiting)) == [1, ValueError, 2, ValueError, 3]
            assert q.empty()
            (one,) = tasks_of(q.get_async())
            await turns()
            q.put(Unreadable())
            with pytest.raises(ValueError, match="Failed to deserialize item: unreadable") as caught:
                await soon(one)
            assert isinstance(caught.value.__cause__, RuntimeError)

    run(main)


# ---- in turn ----


def test_waiting_gets_are_served_in_the_order_in_which_they_came(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            waiting = tasks_of(*(q.get_async() for _ in range(100)))
            await turns()
            for number in range(100):
                q.put(number)
                if number % 7 == 0:
                    await turns(3)
            assert await soon(asyncio.gather(*waiting)) == list(range(100))

    run(main)


def test_waiting_puts_are_served_in_the_order_in_which_they_came(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=3) as q:
            waiting = tasks_of(*(q.put_async(number) for number in range(100)))
            await turns()
            assert [await soon(q.get_async()) for _ in range(100)] == list(range(100))
            await soon(asyncio.gather(*waiting))

    run(main)


def test_a_newcomer_does_not_overtake_those_who_wait(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=3) as q:
            waiting = tasks_of(*(q.get_async() for _ in range(3)))
            await turns()
            for number in range(3):
                q.put(number)  # theirs, though they could not run yet
            (newcomer,) = tasks_of(q.get_async())
            assert await soon(asyncio.gather(*waiting)) == [0, 1, 2]
            assert not newcomer.done()
            q.put(3)
            assert await soon(newcomer) == 3

            q.put_many([0, 1, 2])
            puts = tasks_of(*(q.put_async(number) for number in (3, 4, 5)))
            await turns()
            assert drained(q) == [0, 1, 2]
            (late,) = tasks_of(q.put_async(6))
            await soon(asyncio.gather(*puts))
            assert [await soon(q.get_async()) for _ in range(4)] == [3, 4, 5, 6]
            await soon(late)

    run(main)


@pytest.mark.parametrize("moment", range(5))
def test_those_whose_items_somebody_else_took_keep_their_places(moment: int, name: str, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](name) as q, SageQueue[int](name) as other:
            for _ in range(20):
                waiting = tasks_of(*(q.get_async() for _ in range(6)))
                await turns()
                other.put_many([0, 1, 2])
                await turns(moment)
                stolen = drained(other)
                left = [number for number in (0, 1, 2) if number not in stolen]
                await turns()
                await cancelled(waiting[3:4])
                other.put_many(range(3, 9))
                survivors = waiting[:3] + waiting[4:]
                assert await soon(asyncio.gather(*survivors)) == [*left, *range(3, 9)][:5]
                assert len(drained(other)) == 1 + len(left)

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_are_served_in_turn_and_lose_nothing() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        with SageQueue[int](maxsize=2) as q:
            gets = tasks_of(*(q.get_async() for _ in range(50)))
            puts = tasks_of(*(q.put_async(number) for number in range(50)))
            assert await soon(asyncio.gather(*gets)) == list(range(50))
            await soon(asyncio.gather(*puts))
            puts = tasks_of(*(q.put_async(number) for number in range(50)))
            await cancelled(puts[10:20])
            assert [await soon(q.get_async()) for _ in range(40)] == [*range(10), *range(20, 50)]
            assert q.empty()

    run_plainly(main)


@pytest.mark.parametrize("moment", range(4))
def test_a_newcomer_does_not_overtake_one_whose_turn_has_come_and_who_has_not_run_yet(moment: int, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=3) as q:
            first, second = tasks_of(q.get_async(), q.get_async())
            await turns()
            q.put(1)
            await turns(moment)
            taken = first.done()
            first.cancel()  # if its turn had come, it goes to the second
            (newcomer,) = tasks_of(q.get_async())
            await turns()
            if not taken:
                assert second.done() and not newcomer.done()
            else:
                assert not second.done() and not newcomer.done()
            await cancelled([second, newcomer])

    run(main)


def test_a_large_batch_that_waits_is_not_starved_by_small_puts(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=10) as q:
            q.put_many(range(10))
            (batch,) = tasks_of(q.put_many_async([-1] * 10))
            await turns()
            flood = tasks_of(*(q.put_async(number) for number in range(10, 40)))
            seen = [await soon(q.get_async()) for _ in range(50)]
            assert seen == [*range(10), *[-1] * 10, *range(10, 40)]
            await soon(asyncio.gather(batch, *flood))

    run(main)


def test_every_task_in_a_crowd_has_its_turn(run: Any) -> None:
    """With a producer that never lets the queue be empty, nobody who waits is passed by for ever."""

    async def main() -> None:
        served = collections.Counter[int]()
        with SageQueue[int](maxsize=5) as q:

            async def consume(place: int) -> None:
                while True:
                    await q.get_async()
                    served[place] += 1

            async def produce() -> None:
                while True:
                    await q.put_async(0)

            crowd = tasks_of(*(consume(place) for place in range(50)), *(produce() for _ in range(3)))
            await until(lambda: min(served[place] for place in range(50)) >= 20)
            await cancelled(crowd)

    run(main)


# ---- cancelling ----


@pytest.mark.parametrize("many", [False, True], ids=["get", "get_many"])
def test_a_get_cancelled_at_whatever_moment_loses_nothing(many: bool, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            for between_put_and_cancel in range(8):
                for waiting_before in (0, 1, 20):  # turns
                    calls = [q.get_many_async(2) if many else q.get_async() for _ in range(3)]
                    waiting: list[asyncio.Task[Any]] = tasks_of(*calls)
                    await turns(waiting_before)
                    q.put_many([1, 2, 3])
                    await turns(between_put_and_cancel)
                    waiting[0].cancel()
                    await turns()
                    await cancelled(waiting[1:])
                    results = [task.result() for task in waiting if not task.cancelled()]
                    got = [number for result in results for number in result] if many else results
                    await turns()
                    left = drained(q)
                    assert sorted(got + left) == [1, 2, 3], (between_put_and_cancel, waiting_before, got, left)

    run(main)


def test_an_item_meant_for_a_cancelled_get_goes_to_the_next_in_turn(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            for moment in range(8):
                waiting = tasks_of(*(q.get_async() for _ in range(3)))
                await turns()
                q.put(1)
                await turns(moment)
                first_had_it = waiting[0].done()
                waiting[0].cancel()
                if not first_had_it:
                    done, _ = await asyncio.wait(waiting, timeout=SOON, return_when=asyncio.FIRST_COMPLETED)
                    await until(lambda: any(task.done() and not task.cancelled() for task in waiting))
                results = [task.result() for task in waiting if task.done() and not task.cancelled()]
                assert results == [1], moment
                await cancelled(waiting)
                assert q.empty()

    run(main)


@pytest.mark.parametrize("many", [False, True], ids=["put", "put_many"])
def test_a_put_cancelled_at_whatever_moment_puts_nothing_or_all(many: bool, run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any](maxsize=3) as q:
            for moment in range(8):
                q.put_many(["full"] * 3)
                items = [["a", "b", "c"], ["d", "e", "f"]] if many else [["a"], ["d"]]
                calls = [q.put_many_async(batch) if many else q.put_async(batch[0]) for batch in items]
                waiting = tasks_of(*(outcome(call) for call in calls))
                await turns()
                assert drained(q) == ["full"] * 3
                await turns(moment)
                waiting[0].cancel()
                seen = []
                for _ in range(30):
                    seen += drained(q)
                    await turns(2)
                assert await soon(waiting[1]) is None
                first = await soon(waiting[0])
                seen += drained(q)
                assert seen == ([] if first is asyncio.CancelledError else items[0]) + items[1], (moment, seen)

    run(main)


def test_a_call_that_was_never_awaited_does_nothing(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=2) as q:
            q.put(1)
            for call in (q.get_async(), q.put_async(2), q.get_many_async(), q.put_many_async([2]), q.join_async()):
                call.close()
            assert q.qsize() == 1
            assert drained(q) == [1]

    run(main)


def test_a_waiting_call_that_is_thrown_away_leaves_its_place_to_the_next(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=1) as q:
            get = q.get_async()
            get.send(None)  # it waits now
            (next_one,) = tasks_of(q.get_async())
            await turns()
            get.close()
            q.put(1)
            assert await soon(next_one) == 1

            q.put(1)
            put = q.put_async(2)
            put.send(None)
            (next_put,) = tasks_of(q.put_async(3))
            await turns()
            put.close()
            assert q.get() == 1
            await soon(next_put)
            assert drained(q) == [3]

    run(main)


def test_ten_thousand_tasks_cancelled_at_random_get_every_item_once(run: Any) -> None:
    count = 10_000
    chance = random.Random(3)

    async def main() -> None:
        with SageQueue[int](maxsize=100) as q:
            got: list[int] = []

            async def take() -> None:
                got.append(await q.get_async())

            crowd = tasks_of(*(take() for _ in range(count)))
            await turns(2)
            producers = [fork.Process(target=put_range, args=(q, start, count // 2)) for start in (0, count // 2)]
            for producer in producers:
                producer.start()
            victims = chance.sample(crowd, count // 2)
            while victims:
                for task in victims[-50:]:
                    task.cancel()
                del victims[-50:]
                await asyncio.sleep(0)
            results = asyncio.gather(*crowd, return_exceptions=True)
            cancelled = [result for result in await soon(results) if result is not None]
            assert all(isinstance(error, asyncio.CancelledError) for error in cancelled)
            assert len(got) + len(cancelled) == count
            while len(got) < count:
                got.append(await soon(q.get_async()))
            assert sorted(got) == list(range(count))
            assert q.empty()
            finish(*producers)

    run(main)


def put_range(q: SageQueue[int], start: int, count: int) -> None:
    for number in range(start, start + count):
        q.put(number)


def test_a_crowd_of_putters_and_getters_cancelled_at_random_moves_what_was_put_once(run: Any) -> None:
    chance = random.Random(5)

    async def main() -> None:
        with SageQueue[int](maxsize=7) as q:
            put: list[int] = []
            got: list[int] = []

            async def produce(number: int) -> None:
                await q.put_async(number)
                put.append(number)

            async def consume() -> None:
                got.append(await q.get_async())

            crowd: list[asyncio.Task[None]] = []
            for number in range(4000):
                crowd += tasks_of(produce(number), consume())
                if chance.random() < 0.5:
                    chance.choice(crowd[-200:]).cancel()
                if chance.random() < 0.1:
                    await turns(chance.randrange(4))
            rest = [task for task in crowd if not task.done()]
            for task in rest:
                if chance.random() < 0.5:
                    task.cancel()
            await asyncio.sleep(A_WHILE)
            for task in crowd:
                task.cancel()
            results = await asyncio.gather(*crowd, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
            await turns()
            got.extend(drained(q))
            assert sorted(got) == sorted(put)

    run(main)


def timeout_storm(q: SageQueue[int], limited: Callable[[float], Awaitable[int]], count: int) -> Coroutine[Any, Any, list[int]]:
    """50 tasks ask with a limit that is often too short, while somebody puts; what they got."""

    async def storm() -> list[int]:
        got: list[int] = []
        chance = random.Random(11)

        async def ask() -> None:
            while len(got) < count:
                try:
                    got.append(await limited(chance.random() * 0.006))
                except (Empty, asyncio.TimeoutError):
                    pass

        producer = fork.Process(target=put_slowly, args=(q, count))
        producer.start()
        await soon(asyncio.gather(*(ask() for _ in range(50))))
        finish(producer)
        return got

    return storm()


def put_slowly(q: SageQueue[int], count: int) -> None:
    for number in range(count):
        q.put(number)
        if number % 10 == 0:
            time.sleep(0.001)


@pytest.mark.parametrize("kind", ["wait_for", "timeout", "argument"])
def test_a_storm_of_timeouts_loses_nothing(kind: str, run: Any) -> None:
    if kind == "timeout" and sys.version_info < (3, 11):
        pytest.skip("asyncio.timeout came with 3.11")
    count = 2000

    async def main() -> None:
        with SageQueue[int]() as q:

            async def limited(seconds: float) -> int:
                if kind == "wait_for":
                    return await asyncio.wait_for(q.get_async(), seconds)
                if kind == "argument":
                    return await q.get_async(timeout=seconds)
                async with asyncio.timeout(seconds):  # type: ignore[attr-defined, unused-ignore]
                    return await q.get_async()

            got = await timeout_storm(q, limited, count)
            assert sorted(got + drained(q)) == list(range(count))

    run(main)


@pytest.mark.parametrize("kind", ["wait_for", "argument"])
def test_a_storm_of_timeouts_of_puts_puts_each_item_once_or_not_at_all(kind: str, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=2) as q:
            chance = random.Random(13)
            finished: set[int] = set()
            got: list[int] = []

            async def offer(numbers: range) -> None:
                for number in numbers:
                    limit = chance.random() * 0.003
                    try:
                        if kind == "wait_for":
                            await asyncio.wait_for(q.put_async(number), limit)
                        else:
                            await q.put_async(number, timeout=limit)
                        finished.add(number)
                    except (Full, asyncio.TimeoutError):
                        pass

            async def consume() -> None:
                while True:
                    got.append(await q.get_async())
                    await asyncio.sleep(chance.random() * 0.0005)

            (consumer,) = tasks_of(consume())
            await soon(asyncio.gather(*(offer(range(place * 50, place * 50 + 50)) for place in range(40))))
            await until(q.empty)
            consumer.cancel()
            await outcome(consumer)
            got.extend(drained(q))
            assert sorted(got) == sorted(finished)

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with 3.11")
def test_a_task_group_that_fails_takes_its_waiting_gets_with_it_and_no_item(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:

            async def fail_soon() -> None:
                await turns(5)
                q.put(1)
                raise RuntimeError

            got: list[int] = []

            async def take() -> None:
                got.append(await q.get_async())

            with pytest.raises(BaseException) as caught:
                async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined, unused-ignore]
                    for _ in range(10):
                        group.create_task(take())
                    group.create_task(fail_soon())
            assert type(caught.value).__name__ == "ExceptionGroup"
            await turns()
            assert got + drained(q) == [1]

    run(main)


# ---- the end ----


def waiting_calls(empty: SageQueue[Any], full: SageQueue[Any]) -> list[Coroutine[Any, Any, Any]]:
    """One of each kind, several times; `full` is full and has a task that is not done."""

    async def iterate() -> list[Any]:
        return [item async for item in empty]

    calls: list[Coroutine[Any, Any, Any]] = []
    for _ in range(3):
        calls += [empty.get_async(), empty.get_many_async(), empty.get_async(timeout=SOON), iterate()]
        calls += [full.put_async(2), full.put_many_async([2, 3], True, SOON), full.join_async()]
    return calls


@pytest.mark.parametrize("who", ["task", "thread"])
def test_close_ends_every_waiting_call_with_queue_closed(who: str, run: Any) -> None:
    async def main() -> None:
        empty, full = SageQueue[Any](), SageQueue[Any](maxsize=2)
        full.put_many([0, 1])
        waiting = tasks_of(*(outcome(call) for call in waiting_calls(empty, full)))
        await asyncio.sleep(A_WHILE)
        assert not any(task.done() for task in waiting)

        def close() -> None:
            empty.close()
            full.close()

        if who == "task":
            close()
        else:
            await asyncio.get_running_loop().run_in_executor(None, close)
        assert await soon(asyncio.gather(*waiting)) == [QueueClosed] * len(waiting)
        for call in waiting_calls(empty, full):
            assert await outcome(call) is QueueClosed

    run(main)


def test_close_between_a_put_and_the_waiting_tasks_turn_leaves_the_item_in_the_queue(name: str, run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](name) as other:
            for moment in range(8):
                q = SageQueue[int](name)
                (waiting,) = tasks_of(outcome(q.get_async()))
                await turns()
                other.put(1)
                await turns(moment)
                q.close()
                result = await soon(waiting)
                assert [1] == (drained(other) if result is QueueClosed else [result]), moment
                assert other.empty()

    run(main)


@pytest.mark.parametrize("who", ["task", "process"])
@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_every_waiting_call(who: str, immediate: bool, run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any]() as empty, SageQueue[Any](maxsize=2) as full:
            full.put_many([0, 1])
            calls = waiting_calls(empty, full)
            waiting = tasks_of(*(outcome(call) for call in calls))
            await asyncio.sleep(A_WHILE)
            assert not any(task.done() for task in waiting)
            if who == "task":
                empty.shutdown(immediate)
                full.shutdown(immediate)
            else:
                child = fork.Process(target=shut_down, args=([empty, full], immediate))
                child.start()
                finish(child)
            joiners = waiting[6::7]
            others = [task for task in waiting if task not in joiners]
            expected = [ShutDown, ShutDown, ShutDown, [], ShutDown, ShutDown] * 3
            assert await soon(asyncio.gather(*others)) == expected
            if not immediate:
                assert not any(task.done() for task in joiners)
                assert await full.get_many_async() == [0, 1]
                full.task_done()
                full.task_done()
            assert await soon(asyncio.gather(*joiners)) == [None] * 3
            assert await outcome(full.get_async()) is ShutDown
            assert await outcome(full.get_many_async()) is ShutDown
            assert await outcome(full.put_async(1)) is ShutDown

    run(main)


def shut_down(queues: list[SageQueue[Any]], immediate: bool) -> None:
    for q in queues:
        q.shutdown(immediate)


def test_what_is_left_at_a_shutdown_is_still_handed_out_in_turn(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            waiting = tasks_of(*(outcome(q.get_async()) for _ in range(5)))
            await turns()
            q.put_many([1, 2, 3])
            q.shutdown()
            assert await soon(asyncio.gather(*waiting)) == [1, 2, 3, ShutDown, ShutDown]

    run(main)


# ---- iterating ----


def test_iterating_ends_at_shutdown_and_gives_each_item_to_one(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=10) as q:

            async def consume() -> list[int]:
                return [item async for item in q]

            consumers = tasks_of(*(consume() for _ in range(5)))
            for number in range(1000):
                await soon(q.put_async(number))
            q.shutdown()
            parts = await soon(asyncio.gather(*consumers))
            assert sorted(number for part in parts for number in part) == list(range(1000))
            assert all(part == sorted(part) for part in parts)
            assert [item async for item in q] == []

    run(main)


def test_leaving_an_iteration_or_cancelling_it_loses_nothing(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            q.put_many(range(6))
            async for item in q:
                if item == 2:
                    break
            assert q.qsize() == 3
            got: list[int] = []

            async def consume() -> None:
                async for item in q:
                    got.append(item)

            for moment in range(8):
                (task,) = tasks_of(consume())
                await until(q.empty)
                await turns()
                q.put(6 + moment)
                await turns(moment)
                task.cancel()
                await outcome(task)
                await turns()
            assert sorted(got + drained(q)) == [3, 4, 5, *range(6, 14)]

    run(main)


# ---- join ----


def work_off(q: SageQueue[Any], count: int) -> None:
    for _ in range(count):
        q.get()
        q.task_done()


def test_join_waits_for_the_tasks_that_other_processes_mark(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            await q.join_async()  # nothing to wait for
            q.put_many(range(20))
            joiners = tasks_of(*(q.join_async() for _ in range(10)))
            await asyncio.sleep(A_WHILE)
            assert not any(task.done() for task in joiners)
            children = [fork.Process(target=work_off, args=(q, 10)) for _ in range(2)]
            for child in children:
                child.start()
            await soon(asyncio.gather(*joiners))
            assert q.get_stats()["unfinished"] == 0
            finish(*children)

    run(main)


def test_join_ends_when_this_loop_marks_the_last_task_and_not_before(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            q.put_many([1, 2])
            joiners = tasks_of(q.join_async(), q.join_async())
            for _ in range(2):
                await turns()
                assert not any(task.done() for task in joiners)
                await q.get_async()
                await asyncio.sleep(0.01)
                assert not any(task.done() for task in joiners)
                q.task_done()
            await soon(asyncio.gather(*joiners))

    run(main)


def test_join_forgives_what_a_killed_worker_had_got(run: Any) -> None:
    async def main() -> None:
        with SageQueue[str]() as q:
            q.put("work")
            child = fork.Process(target=get_and_hang, args=(q,))
            child.start()
            await until(q.empty)
            (joiner,) = tasks_of(q.join_async())
            await asyncio.sleep(A_WHILE)
            assert not joiner.done()
            child.kill()
            child.join(SOON)
            await soon(joiner)

    run(main)


def get_and_hang(q: SageQueue[Any]) -> None:
    q.get()
    time.sleep(SOON)


def test_a_cancelled_join_leaves_the_other_joiners_waiting(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int]() as q:
            q.put(1)
            first, second = tasks_of(q.join_async(), q.join_async())
            await turns()
            first.cancel()
            assert await outcome(first) is asyncio.CancelledError
            assert not second.done()
            q.get()
            q.task_done()
            await soon(second)

    run(main)


# ---- other processes ----


def lease_and_hang(q: SageQueue[Any]) -> None:
    kept = q.lease()
    while True:
        time.sleep(1)
    del kept


def test_a_waiting_task_is_given_what_a_killed_process_had_taken(run: Any) -> None:
    async def main() -> None:
        with SageQueue[str]() as q:
            q.put("work")
            child = fork.Process(target=lease_and_hang, args=(q,))
            child.start()
            await until(q.empty)
            (waiting,) = tasks_of(q.get_async())
            await asyncio.sleep(A_WHILE)
            assert not waiting.done()
            child.kill()
            child.join(SOON)
            assert await soon(waiting) == "work"

    run(main)


class Trap:
    """Whoever decodes it, except the one who made it, is held for ever."""

    def __init__(self) -> None:
        self.maker = os.getpid()

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)
        while os.getpid() != self.maker:
            time.sleep(1)


def test_a_waiting_put_goes_round_a_process_that_is_stuck_in_the_middle_of_a_get(run: Any) -> None:
    """It keeps its message in the ring, and with it all of the room behind that."""

    async def main() -> None:
        with SageQueue[Any](capacity="64 KiB") as q:
            q.put(Trap())
            child = fork.Process(target=get_and_hang, args=(q,))
            child.start()
            await until(q.empty)
            count = 0
            with contextlib.suppress(Full):
                while True:
                    q.put_nowait((count, bytes(1000)))
                    count += 1
            assert [number for number, _ in drained(q)] == list(range(count))
            assert await outcome(q.put_async((-1, bytes(1000)), block=False)) is Full
            puts = asyncio.gather(*(q.put_async((number, bytes(1000))) for number in range(30)))
            seen = await outcome(soon(puts))
            child.kill()
            child.join(SOON)
            assert seen == [None] * 30
            assert sorted(item[0] for item in drained(q) if isinstance(item, tuple)) == list(range(30))

    run(main)


def drain_into(q: SageQueue[int], results: SageQueue[Any]) -> None:
    results.put(list(q))


def test_a_full_queue_that_another_process_drains_wakes_putters_in_turn(run: Any) -> None:
    async def main() -> None:
        with SageQueue[int](maxsize=1) as q, SageQueue[Any]() as results:
            puts = tasks_of(*(q.put_async(number) for number in range(500)))
            await asyncio.sleep(A_WHILE)
            assert sum(task.done() for task in puts) == 1
            child = fork.Process(target=drain_into, args=(q, results))
            child.start()
            await soon(asyncio.gather(*puts))
            q.shutdown()
            assert await soon(results.get_async()) == list(range(500))
            finish(child)

    run(main)


def crowd_in_a_process(q: SageQueue[int], results: SageQueue[Any], size: int) -> None:
    async def main() -> None:
        async def consume() -> list[int]:
            return [item async for item in q]

        parts = await asyncio.gather(*(consume() for _ in range(size)))
        await results.put_async([item for part in parts for item in part])

    asyncio.run(main())


def putters_in_a_process(q: SageQueue[int], numbers: range, size: int) -> None:
    async def main() -> None:
        async def produce(mine: range) -> None:
            for number in mine:
                await q.put_async(number)

        await asyncio.gather(*(produce(numbers[place::size]) for place in range(size)))

    asyncio.run(main())


@pytest.mark.parametrize("maxsize", [1, 50])
def test_between_loops_threads_and_plain_processes_every_item_arrives_once(context: Any, maxsize: int) -> None:
    count = 2000
    with SageQueue[int](maxsize=maxsize) as q, SageQueue[Any](capacity="16 MiB") as results:
        consumers = [context.Process(target=crowd_in_a_process, args=(q, results, 20)) for _ in range(2)]
        consumers.append(context.Process(target=drain_into, args=(q, results)))
        producers = [context.Process(target=putters_in_a_process, args=(q, range(count), 20))]
        producers.append(context.Process(target=put_range, args=(q, count, count)))
        for process in consumers + producers:
            process.start()
        finish(*producers)
        q.shutdown()
        parts = [results.get(timeout=SOON) for _ in consumers]
        finish(*consumers)
    assert sorted(number for part in parts for number in part) == list(range(2 * count))


def test_killed_loops_take_no_message_with_them_that_nobody_had_got(tmp_path: Any) -> None:
    """Leases, with a journal of what was acknowledged: each message is acknowledged exactly once, whoever is killed meanwhile."""
    count, kills = 400, 6
    with SageQueue[int]() as q, SageQueue[int]() as done:
        q.put_many(range(count))
        workers = [fork.Process(target=move_by_loop, args=(q, done)) for _ in range(3)]
        for worker in workers:
            worker.start()
        seen: set[int] = set()
        while len(seen) < count:
            seen.update(done.get_many(timeout=SOON))
            if kills and len(seen) > count // 10:
                kills -= 1
                workers[kills % 3].kill()
                workers[kills % 3].join(SOON)
                workers[kills % 3] = fork.Process(target=move_by_loop, args=(q, done))
                workers[kills % 3].start()
        assert seen == set(range(count))
        q.shutdown()
        finish(*workers)


def move_by_loop(q: SageQueue[int], done: SageQueue[int]) -> None:
    """Waits by the descriptor, leases, and answers by put_async."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        while True:
            ready = asyncio.Event()
            loop.add_reader(q, ready.set)
            await ready.wait()
            loop.remove_reader(q)
            try:
                with q.lease(False) as message:
                    await done.put_async(message.value)
                    await asyncio.sleep(0.002)
            except Empty:
                continue
            except ShutDown:
                return

    asyncio.run(main())


# ---- loops ----


def test_two_loops_in_two_threads_share_a_queue(run: Any) -> None:
    count = 3000
    with SageQueue[int](maxsize=10) as q:
        parts: list[list[int]] = []

        def consume_in_a_loop() -> None:
            async def main() -> None:
                async def consume() -> list[int]:
                    return [item async for item in q]

                parts.extend(await asyncio.gather(*(consume() for _ in range(10))))

            run(main)

        async def produce() -> None:
            async def some(numbers: range) -> None:
                for number in numbers:
                    await q.put_async(number)

            await soon(asyncio.gather(*(some(range(place, count, 10)) for place in range(10))))
            q.shutdown()

        threads = [threading.Thread(target=consume_in_a_loop) for _ in range(2)]
        for thread in threads:
            thread.start()
        run(produce)
        for thread in threads:
            thread.join(SOON)
        assert len(parts) == 20
        assert sorted(number for part in parts for number in part) == list(range(count))


def test_an_idle_loop_leaves_the_items_to_a_busy_one_in_another_thread(run: Any) -> None:
    """A loop that is stuck in a computation with tasks waiting does not keep others from getting what is there."""
    with SageQueue[int]() as q:
        waits, go_on = threading.Event(), threading.Event()
        left: list[int] = []

        def stuck() -> None:
            async def main() -> None:
                (waiting,) = tasks_of(q.get_async())
                await turns()
                waits.set()
                go_on.wait(SOON)  # blocks the loop on purpose
                left.append(await soon(waiting))

            run(main)

        thread = threading.Thread(target=stuck)
        thread.start()
        assert waits.wait(SOON)

        async def main() -> None:
            for number in range(100):
                await q.put_async(number)
                assert await soon(q.get_async()) == number

        run(main)
        go_on.set()
        q.put(100)
        thread.join(SOON)
        assert left == [100]


def test_one_queue_serves_one_loop_after_the_other(run: Any) -> None:
    with SageQueue[int](maxsize=1) as q:
        descriptors = []
        for number in range(30):

            async def main(number: int = number) -> None:
                (get,) = tasks_of(q.get_async())
                await turns()
                await asyncio.gather(q.put_async(number), q.put_async(-1))
                assert await soon(get) == number
                assert await q.get_async() == -1

            run(main)
            q.put(number)  # and between two loops it is used as ever
            assert q.get(timeout=SOON) == number
            descriptors.append(len(os.listdir("/proc/self/fd")))
        assert descriptors[-1] == descriptors[1]  # nothing piles up


def test_a_loop_closed_with_tasks_waiting_takes_nothing_with_it() -> None:
    with SageQueue[int](maxsize=1) as q:
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(lambda loop, context: None)  # which would complain about the tasks
            tasks = [loop.create_task(q.get_async()) for _ in range(5)]
            loop.run_until_complete(turns())
            loop.close()
            q.put(1)
            assert q.get_nowait() == 1

            async def main() -> None:
                (waiting,) = tasks_of(q.get_async())
                await turns()
                q.put(2)
                assert await soon(waiting) == 2

            run_plainly(main)
            assert not any(task.done() for task in tasks)
            del tasks, loop
            gc.collect()
        assert q.empty()


def test_asyncio_run_twice_and_a_blocking_call_between(run: Any) -> None:
    with SageQueue[str]() as q:
        asyncio.run(q.put_async("one"))
        assert q.get(timeout=SOON) == "one"
        q.put("two")
        assert asyncio.run(q.get_async()) == "two"
        with pytest.raises(Empty):
            asyncio.run(q.get_async(timeout=0.01))


def test_a_queue_is_not_kept_by_the_loop_that_it_was_used_in(run: Any, queue_directory: Any) -> None:
    async def main() -> None:
        q = SageQueue[int]()
        (waiting,) = tasks_of(q.get_async())
        await turns()
        q.put(1)
        assert await soon(waiting) == 1
        del q, waiting
        gc.collect()
        await until(lambda: not list(queue_directory.iterdir()))

    run(main)


def test_a_closed_queue_leaves_nothing_registered_in_the_loop(run: Any) -> None:
    """The number of its descriptor is free for others, who can register it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            with SageQueue[int](maxsize=1) as q:
                q.put(1)
                calls = [q.put_async(2), q.join_async(), *(q.get_many_async() for _ in range(3))]
                waiting = tasks_of(*(outcome(call) for call in calls))
                await turns()
            assert QueueClosed in await soon(asyncio.gather(*waiting))
            reading, writing = os.pipe()
            readable = asyncio.Event()
            loop.add_reader(reading, readable.set)
            os.write(writing, b"x")
            await soon(readable.wait())
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)

    run(main)


# ---- fork ----


def test_a_child_forked_while_tasks_wait_has_a_loop_of_its_own_and_they_go_on_waiting(run: Any) -> None:
    async def main() -> None:
        with SageQueue[Any](maxsize=2) as q, SageQueue[int](maxsize=1) as full:
            full.put(0)
            waiting = tasks_of(*(q.get_async() for _ in range(2)))
            (put,) = tasks_of(full.put_async(1))
            (joiner,) = tasks_of(full.join_async())
            await turns()

            async def child() -> None:
                with SageQueue[int]() as own:
                    (mine,) = tasks_of(own.get_async())
                    await turns()
                    await own.put_async(1)
                    assert await soon(mine) == 1
                (get,) = tasks_of(q.get_async(timeout=0.05))
                assert await outcome(get) is Empty
                await q.put_async("from the child")
                assert await full.get_async() == 0
                full.task_done()

            in_a_fork(lambda: asyncio.run(child()))
            assert await soon(waiting[0]) == "from the child"
            await soon(put)
            assert not waiting[1].done() and not joiner.done()
            assert drained(full) == [1]
            full.task_done()
            await soon(joiner)
            await q.put_async("from here")
            assert await soon(waiting[1]) == "from here"

    run(main)


def test_a_child_forked_from_a_used_queue_has_its_own_turn_after_the_parents_loop_has_ended() -> None:
    with SageQueue[int](maxsize=1) as q:

        async def round_trip() -> None:
            (get,) = tasks_of(q.get_async())
            await turns()
            await asyncio.gather(q.put_async(1), q.put_async(2))
            assert await soon(get) == 1
            assert await q.get_async() == 2

        asyncio.run(round_trip())
        for _ in range(5):
            in_a_fork(lambda: asyncio.run(round_trip()))
            asyncio.run(round_trip())


@pytest.mark.parametrize("child", ["closes", "asks and closes", "leaves"])
def test_what_a_child_inherits_from_a_loop_does_not_stay_when_all_are_gone(
    child: str, run_python: Run, queue_directory: pathlib.Path
) -> None:
    """Its parent is killed, so that nobody else tidies up."""
    code = """
import asyncio, os, signal, sys, time
from sage_queue import SageQueue
q = SageQueue(maxsize=1)
async def use():
    get = asyncio.ensure_future(q.get_async())
    await asyncio.sleep(0)
    await asyncio.gather(q.put_async(1), q.put_async(2))
    assert (await get, await q.get_async()) == (1, 2)
asyncio.run(use())
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent: time.sleep(0.01)
    if sys.argv[1] == "asks and closes": asyncio.run(use())
    if sys.argv[1] != "leaves": q.close()
    sys.exit()
os.kill(parent, signal.SIGKILL)
"""
    assert run_python(code, child, check=False).stderr == ""
    assert list(queue_directory.iterdir()) == []


# ---- signals ----


def test_ctrl_c_ends_a_run_with_waiting_tasks_and_the_queue_goes_on(run_python: Run) -> None:
    code = """
import asyncio, os, signal, threading
from sage_queue import SageQueue
signal.signal(signal.SIGINT, signal.default_int_handler)
with SageQueue(maxsize=1) as q, SageQueue(maxsize=1) as full:
    full.put(0)
    async def main(call):
        others = [asyncio.ensure_future(q.get_async()) for _ in range(5)]
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        await call()
    for call in (q.get_async, q.get_many_async, lambda: full.put_async(1), full.join_async):
        try: asyncio.run(main(call))
        except KeyboardInterrupt: print("interrupted")
    q.put(2)
    assert q.get_nowait() == 2
    assert full.get_nowait() == 0
    assert asyncio.run(asyncio.wait_for(full.put_async(3), 20)) is None
    assert asyncio.run(asyncio.wait_for(full.get_async(), 20)) == 3
"""
    done = run_python(code)
    assert done.stdout.split() == ["interrupted"] * 4
    assert done.stderr == ""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11, Ctrl-C raises wherever the loop happens to be")
def test_ctrl_c_again_and_again_during_traffic_loses_nothing(run_python: Run) -> None:
    code = """
import asyncio, os, random, signal, threading
from sage_queue import SageQueue
signal.signal(signal.SIGINT, signal.default_int_handler)
COUNT, got, interrupts = 20_000, [], 0
with SageQueue(maxsize=50) as q:
    async def consume():
        while True: got.append(await q.get_async())
    async def main():
        others = [asyncio.ensure_future(consume()) for _ in range(10)]
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + random.random() * 0.005)  # each run is interrupted once
        await asyncio.sleep(60)
    def put_all():
        for number in range(COUNT): q.put(number)
    signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    producer = threading.Thread(target=put_all)
    producer.start()
    while producer.is_alive():
        try: asyncio.run(main())
        except KeyboardInterrupt: interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    producer.join()
    while not q.empty(): got.append(q.get_nowait())
    assert sorted(got) == list(range(COUNT)), len(got)
    assert interrupts > 10, interrupts
"""
    assert run_python(code).stderr == ""


# ---- what it costs ----


def test_ten_thousand_waiting_tasks_cost_no_thread_and_nearly_no_time(run: Any) -> None:
    """Of the processor's time, not of the clock's: an upper bound of that says something."""
    count = 10_000

    async def main() -> None:
        with SageQueue[int](maxsize=1) as q, SageQueue[int](maxsize=1) as full:
            full.put(-1)
            threads = len(os.listdir("/proc/self/task"))
            gets = tasks_of(*(q.get_async() for _ in range(count)))
            puts = tasks_of(*(full.put_async(number) for number in range(100)))
            joiners = tasks_of(*(full.join_async() for _ in range(100)))
            await asyncio.sleep(0.2)
            assert len(os.listdir("/proc/self/task")) <= threads + 1
            start, start_cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(3)
            share = (time.process_time() - start_cpu) / (time.monotonic() - start)
            assert share < 0.05, f"{share:.1%} of a processor while nothing happens"
            for number in range(count):
                await q.put_async(number)
            assert await soon(asyncio.gather(*gets)) == list(range(count))
            assert [await soon(full.get_async()) for _ in range(101)] == [-1, *range(100)]
            await soon(asyncio.gather(*puts))
            for task in joiners:
                task.cancel()

    run(main)


class Counted:
    """How often it was serialized, and that takes a while."""

    times = 0

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.times += 1
        give_up = time.monotonic() + 0.01
        while time.monotonic() < give_up:
            pass
        return Counted, ()


def test_one_who_waits_for_room_does_not_serialize_his_item_again_and_again(run: Any) -> None:
    """Not while nothing happens, and not at each item that others get and put, if that makes no room for his."""

    async def main() -> None:
        with SageQueue[Any](maxsize=1) as full, SageQueue[Any](arena="1 MiB") as narrow:
            full.put(1)
            narrow.put(bytes(600_000))
            message = narrow.lease()
            waiting = tasks_of(full.put_async(Counted()), narrow.put_async((Counted(), bytes(600_000))))
            await turns()
            Counted.times = 0
            for _ in range(300):
                narrow.put("small")
                await asyncio.sleep(0.002)
                narrow.get()
            assert Counted.times < 60
            assert full.get() == 1
            await soon(waiting[0])
            assert isinstance(full.get(), Counted)
            assert not waiting[1].done()
            message.ack()
            await soon(waiting[1])
            assert len(narrow.get()[1]) == 600_000

    run(main)


def test_one_turn_of_the_loop_does_not_grow_with_those_who_wait(run: Any) -> None:
    """Ten times as many who wait cost not ten times as much for each item: in steps of the loop, which can be counted."""

    async def steps_for(count: int) -> int:
        with SageQueue[int]() as q:
            waiting = tasks_of(*(q.get_async() for _ in range(count)))
            await turns(3)
            steps = 0
            for number in range(20):
                q.put(number)
                while not waiting[number].done():
                    steps += 1
                    await asyncio.sleep(0)
            await cancelled(waiting)
            return steps

    async def main() -> None:
        few, many = await steps_for(50), await steps_for(5000)
        assert many < 10 * few + 200

    run(main)


def test_a_large_crowd_is_served_in_turn_across_processes(run: Any) -> None:
    """Tasks of one loop are served in turn also when everything comes from elsewhere."""

    async def main() -> None:
        with SageQueue[int](maxsize=3) as q:
            waiting = tasks_of(*(q.get_async() for _ in range(2000)))
            await turns(3)
            child = fork.Process(target=functools.partial(put_range, q, 0, 2000))
            child.start()
            assert await soon(asyncio.gather(*waiting)) == list(range(2000))
            finish(child)

    run(main)
