"""Async actors of real Ray: hundreds of calls at once in one event loop, which all wait for queues without a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import test_ray  # which starts Ray, and skips where it is not installed
from ray_actors import SOON, Producer, Survivor, Victim, message
from sage_queue import Empty, Full, SageQueue, ShutDown
from test_ray import check_all_of, get, kill, ray, wait_for

environment, cluster, start = test_ray.environment, test_ray.cluster, test_ray.start


class Crowd:
    """An async actor: its methods run in one event loop, as many at once as `max_concurrency` allows."""

    def __init__(self, queue: SageQueue[Any]) -> None:
        self.queue = queue
        self.waiting = 0

    async def get(self) -> Any:
        self.waiting += 1
        try:
            return await self.queue.get_async()
        finally:
            self.waiting -= 1

    async def get_within(self, seconds: float) -> Any:
        import ray.util.queue  # noqa: F401  (where it is loaded, ours are also its exceptions)

        return await self.queue.get_async(timeout=seconds)

    async def put(self, item: Any) -> None:
        self.waiting += 1
        try:
            await self.queue.put_async(item)
        finally:
            self.waiting -= 1

    async def put_within(self, item: Any, seconds: float) -> None:
        await self.queue.put_async(item, timeout=seconds)

    async def produce(self, producer: str, count: int) -> int:
        for sequence in range(count):
            await self.queue.put_async(message(producer, sequence))
        return count

    async def produce_many(self, producer: str, count: int) -> int:
        await self.queue.put_many_async(message(producer, sequence) for sequence in range(count))
        return count

    async def consume(self) -> list[tuple[str, int]]:
        seen = []
        async for item in self.queue:
            assert item == message(*item[:2])
            seen.append(item[:2])
        return seen

    async def consume_many(self) -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        while True:
            try:
                items = await self.queue.get_many_async(10)
            except ShutDown:
                return seen
            assert items == [message(*item[:2]) for item in items]
            seen += [item[:2] for item in items]

    async def join(self) -> None:
        await self.queue.join_async()

    async def close(self) -> None:
        self.queue.close()

    async def look(self) -> dict[str, Any]:
        """What it is doing meanwhile: its loop goes on."""
        await asyncio.sleep(0)
        return {"waiting": self.waiting, "threads": len(os.listdir("/proc/self/task")), "python threads": threading.active_count()}

    async def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def crowd(start: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    def make(queue: SageQueue[Any]) -> Any:
        return start(Crowd, queue, max_concurrency=1000)

    yield make


def waits(actor: Any, count: int) -> None:
    wait_for(lambda: get(actor.look.remote())["waiting"] == count, f"{count} calls that wait")


def test_three_hundred_gets_wait_in_one_actor_without_a_thread_and_each_gets_one_item(crowd: Any) -> None:
    with SageQueue[int]() as queue:
        actor = crowd(queue)
        warm_up = actor.get.remote()
        queue.put(-1)
        assert get(warm_up) == -1
        before = get(actor.look.remote())
        results = [actor.get.remote() for _ in range(300)]
        waits(actor, 300)
        assert get(actor.look.remote())["python threads"] == before["python threads"]
        queue.put_many(range(300))
        assert sorted(get(*results)) == list(range(300))
        assert queue.empty()


def test_puts_of_an_actor_wait_for_room_that_others_make(crowd: Any) -> None:
    with SageQueue[int](maxsize=2) as queue:
        actor = crowd(queue)
        results = [actor.put.remote(number) for number in range(100)]
        waits(actor, 98)
        assert sorted(queue.get(timeout=SOON) for _ in range(100)) == list(range(100))
        get(*results)


@pytest.mark.parametrize("maxsize", [1, 100])
def test_between_async_actors_sync_actors_and_this_process_everything_arrives_once(
    crowd: Any, start: Callable[..., Any], maxsize: int
) -> None:
    with SageQueue[Any](maxsize=maxsize) as queue:
        senders, receivers, plain = crowd(queue), crowd(queue), start(Producer)
        parts = [receivers.consume.remote() for _ in range(20)] + [receivers.consume_many.remote() for _ in range(5)]
        sent = [senders.produce.remote(f"async {place}", 40) for place in range(20)]
        sent += [senders.produce_many.remote(f"many {place}", 40) for place in range(5)]
        sent.append(plain.produce.remote(queue, "sync", 200))
        Producer().produce(queue, "here", 200)
        get(*sent)
        queue.shutdown()
        expected = {f"async {place}": 40 for place in range(20)} | {f"many {place}": 40 for place in range(5)}
        check_all_of(get(*parts), expected | {"sync": 200, "here": 200})


def test_a_cancelled_call_of_an_actor_loses_nothing(crowd: Any) -> None:
    with SageQueue[int]() as queue:
        actor = crowd(queue)
        results = [actor.get.remote() for _ in range(100)]
        waits(actor, 100)
        for result in results[::2]:
            ray.cancel(result)
        waits(actor, 50)
        queue.put_many(range(60))
        assert sorted(get(*results[1::2])) == list(range(50))  # who waits longest comes first, and these are all who wait
        assert queue.drain() == list(range(50, 60))
        for result in results[::2]:
            with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.RayTaskError)):
                get(result)


def test_outcomes_in_an_actor_are_those_of_the_blocking_calls_and_of_rays_own_queue(crowd: Any) -> None:
    from ray.util.queue import Empty as RayEmpty
    from ray.util.queue import Full as RayFull

    with SageQueue[int](maxsize=1) as queue:
        actor = crowd(queue)
        for kind in (Empty, RayEmpty):
            with pytest.raises(kind):
                get(actor.get_within.remote(0.01))
        queue.put(1)
        for other in (Full, RayFull):
            with pytest.raises(other):
                get(actor.put_within.remote(2, 0.01))
        assert queue.drain() == [1]


def test_shutdown_and_close_end_what_waits_in_an_actor(crowd: Any) -> None:
    with SageQueue[int]() as queue, SageQueue[int]() as second:
        actor, other = crowd(queue), crowd(second)
        results = [actor.get.remote() for _ in range(20)] + [actor.consume.remote() for _ in range(3)]
        waits(actor, 20)
        queue.shutdown()
        for result in results[:20]:
            with pytest.raises(ShutDown):
                get(result)
        assert get(*results[20:]) == [[], [], []]
        results = [other.get.remote() for _ in range(20)]
        waits(other, 20)
        get(other.close.remote())
        for result in results:
            with pytest.raises(Exception, match="Queue is closed"):
                get(result)
        second.put(1)
        assert second.get_nowait() == 1


def test_join_in_an_actor_ends_when_this_process_has_marked_the_last_task(crowd: Any) -> None:
    with SageQueue[int]() as queue:
        actor = crowd(queue)
        queue.put_many(range(3))
        joined = actor.join.remote()
        for _ in range(3):
            assert ray.wait([joined], timeout=0.05)[0] == []
            queue.get()
            queue.task_done()
        get(joined)


def test_an_async_actor_killed_with_calls_waiting_leaves_the_queue_to_the_others(crowd: Any) -> None:
    with SageQueue[int](maxsize=10) as queue:
        doomed, survivor = crowd(queue), crowd(queue)
        pid = get(doomed.pid.remote())
        for _ in range(50):
            doomed.get.remote()
        waits(doomed, 50)
        results = [survivor.get.remote() for _ in range(100)]
        waits(survivor, 100)
        kill(doomed, pid)
        for number in range(100):
            queue.put(number, timeout=SOON)
        assert sorted(get(*results)) == list(range(100))
        assert queue.empty()


def test_an_async_actor_is_given_what_a_killed_actor_had_in_its_hands(
    crowd: Any, start: Callable[..., Any], tmp_path: Any
) -> None:
    from ray_actors import Trap

    with SageQueue[Any]() as queue:
        victim = start(Victim, queue, str(tmp_path / "journal"))
        pid = get(victim.pid.remote())
        victim.get.remote()  # held for ever by the trap, in the middle of decoding
        queue.put(Trap(str(tmp_path / "caught"), b"x"))
        wait_for(lambda: (tmp_path / "caught").exists() and queue.empty(), "the victim to be caught")
        actor = crowd(queue)
        result = actor.get.remote()
        waits(actor, 1)
        kill(victim, pid)
        assert get(result).payload == b"x"


def test_async_and_blocking_actors_share_what_is_there(crowd: Any, start: Callable[..., Any]) -> None:
    with SageQueue[int]() as queue:
        asynchronous, blocking = crowd(queue), start(Survivor, queue)
        for number in range(50):
            results = [asynchronous.get.remote(), blocking.get.remote()]
            queue.put(2 * number)
            queue.put(2 * number + 1)
            assert sorted(get(*results)) == [2 * number, 2 * number + 1]
