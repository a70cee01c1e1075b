"""What ray.util.queue.Queue and SageQueue promise alike, asked of both, in real Ray.

Where they differ, the name of the test begins with "unlike rays"; the table in docs/guarantees.md names those tests.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[test]'")
importlib.import_module("ray.util.queue")

import sage_queue  # noqa: E402
from sage_queue import SageQueue, ShutDown, _errors  # noqa: E402

Make = Callable[..., Any]
Run = Callable[..., subprocess.CompletedProcess[str]]

SOON = 60.0  # Ray may have to start a process first


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with its files in a directory that goes away with it."""
    directory = tempfile.mkdtemp(prefix="ray.", dir="/tmp")  # a short path: Ray makes sockets below it
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=directory,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


def _rays(maxsize: int = 0) -> Any:
    return ray.util.queue.Queue(maxsize, actor_options={"num_cpus": 0})


def _sage(maxsize: int = 0) -> Any:
    return SageQueue(maxsize=maxsize)


@pytest.fixture(params=[pytest.param(_rays, id="ray.util.queue"), pytest.param(_sage, id="SageQueue")])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make queues that end with the test."""
    made: list[Any] = []

    def make_one(maxsize: int = 0) -> Any:
        made.append(request.param(maxsize))
        return made[-1]

    yield make_one
    for each in made:
        if isinstance(each, SageQueue):
            each.close()
        else:
            each.shutdown(force=True)


def contents(q: Any) -> list[Any]:
    return [q.get(timeout=SOON) for _ in range(q.qsize())]


# ---- one item at a time ----


def test_items_come_out_in_the_order_they_went_in(make: Make) -> None:
    q = make()
    items = [None, 0, "", b"bytes", {"a": [1, 2]}, (1, 2), "ü" * 1000]
    for item in items:
        q.put(item)
    assert [q.get() for _ in items] == items


def test_arguments_go_by_position_and_by_name(make: Make) -> None:
    q = make(4)
    q.put("a", True, SOON)
    q.put("b", block=True, timeout=SOON)
    q.put("c", False)
    q.put_nowait("d")
    assert [q.get(True, SOON), q.get(block=True, timeout=SOON), q.get(False), q.get_nowait()] == ["a", "b", "c", "d"]


def test_size_qsize_empty_full_and_maxsize_tell_how_full_it_is(make: Make) -> None:
    q = make(2)
    assert q.maxsize == 2
    assert (q.size(), q.qsize(), q.empty(), q.full()) == (0, 0, True, False)
    q.put(1)
    assert (q.size(), q.qsize(), q.empty(), q.full()) == (1, 1, False, False)
    q.put(2)
    assert (q.size(), q.qsize(), q.empty(), q.full()) == (2, 2, False, True)


def test_an_empty_queue_raises_the_empty_of_both_families(make: Make) -> None:
    q = make()
    for get in (
        q.get_nowait,
        lambda: q.get(block=False),
        lambda: q.get(False, -1),
        lambda: q.get(timeout=0.05),
        lambda: q.get(timeout=0),
    ):
        for family in (ray.util.queue.Empty, queue.Empty, sage_queue.Empty):
            with pytest.raises(family):
                get()


def test_a_full_queue_raises_the_full_of_both_families_and_keeps_what_it_has(make: Make) -> None:
    q = make(1)
    q.put("there")
    puts: list[Callable[[], None]] = [
        lambda: q.put_nowait("more"),
        lambda: q.put("more", block=False),
        lambda: q.put("more", False, -1),
        lambda: q.put("more", timeout=0.05),
        lambda: q.put("more", timeout=0),
    ]
    for put in puts:
        for family in (ray.util.queue.Full, queue.Full, sage_queue.Full):
            with pytest.raises(family):
                put()
    assert contents(q) == ["there"]


def test_a_negative_timeout_is_an_error(make: Make) -> None:
    q = make(1)
    with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
        q.get(timeout=-1)
    with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
        q.put(1, timeout=-0.5)
    assert q.empty()


def test_a_timeout_is_waited_for(make: Make) -> None:
    q = make(1)
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.2)
    q.put(1)
    with pytest.raises(queue.Full):
        q.put(2, timeout=0.2)
    assert time.monotonic() - start >= 0.4


def test_a_waiting_get_returns_what_a_task_puts(make: Make) -> None:
    q = make()

    def put(q: Any) -> None:
        q.put("from the task")

    done = ray.remote(num_cpus=0)(put).remote(q)
    assert q.get(timeout=SOON) == "from the task"
    ray.get(done, timeout=SOON)


def test_a_waiting_put_goes_on_when_a_task_gets(make: Make) -> None:
    q = make(1)
    q.put("first")

    def get(q: Any) -> Any:
        return q.get()

    got = ray.remote(num_cpus=0)(get).remote(q)
    q.put("second", timeout=SOON)
    assert ray.get(got, timeout=SOON) == "first"
    assert q.get(timeout=SOON) == "second"


def test_several_actors_share_a_queue_and_every_item_is_got_once(make: Make) -> None:
    q, results = make(10), make()

    class Worker:
        def work(self, q: Any, results: Any) -> int:
            count = 0
            while (item := q.get(timeout=60)) is not None:
                results.put(item)
                count += 1
            return count

    workers = [ray.remote(num_cpus=0)(Worker).remote() for _ in range(2)]
    counts = [worker.work.remote(q, results) for worker in workers]
    for number in range(100):
        q.put(number, timeout=SOON)
    for _ in workers:
        q.put(None, timeout=SOON)
    assert sum(ray.get(counts, timeout=SOON)) == 100
    assert sorted(contents(results)) == list(range(100))
    for worker in workers:
        ray.kill(worker)


# ---- several at once, all or nothing ----


def test_a_batch_goes_in_and_comes_out_in_order(make: Make) -> None:
    q = make()
    q.put("before")
    q.put_nowait_batch([1, 2, 3])
    q.put_nowait_batch((4,))
    q.put_nowait_batch([])
    assert q.qsize() == 5
    assert q.get_nowait_batch(0) == []
    assert q.get_nowait_batch(2) == ["before", 1]
    assert q.get_nowait_batch(3) == [2, 3, 4]
    assert q.empty()


def test_a_batch_that_has_no_room_is_full_and_nothing_of_it_is_put(make: Make) -> None:
    q = make(3)
    q.put("there")
    for family in (ray.util.queue.Full, queue.Full):
        with pytest.raises(family):
            q.put_nowait_batch([1, 2, 3])
    assert q.qsize() == 1
    q.put_nowait_batch([1, 2])
    with pytest.raises(queue.Full):
        q.put_nowait_batch([3])
    assert contents(q) == ["there", 1, 2]


def test_a_batch_that_is_not_there_is_empty_and_nothing_of_it_is_got(make: Make) -> None:
    q = make()
    q.put_nowait_batch([1, 2])
    for family in (ray.util.queue.Empty, queue.Empty):
        with pytest.raises(family):
            q.get_nowait_batch(3)
    assert q.qsize() == 2
    assert q.get_nowait_batch(2) == [1, 2]
    with pytest.raises(queue.Empty):
        q.get_nowait_batch(1)


@pytest.mark.parametrize("bad", [5, None, object()])
def test_a_batch_that_cannot_be_iterated_over_is_a_type_error(make: Make, bad: Any) -> None:
    q = make()
    with pytest.raises(TypeError):
        q.put_nowait_batch(bad)
    assert q.empty()


@pytest.mark.parametrize(("bad", "error"), [("2", TypeError), (2.0, TypeError), (None, TypeError), (-1, ValueError)])
def test_a_batch_of_no_number_is_an_error(make: Make, bad: Any, error: type[Exception]) -> None:
    q = make()
    q.put(1)
    with pytest.raises(error):
        q.get_nowait_batch(bad)
    assert contents(q) == [1]


# ---- asyncio ----


def test_a_task_awaits_what_another_task_puts(make: Make) -> None:
    q = make(1)

    async def talk() -> list[Any]:
        waiting = asyncio.create_task(q.get_async())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await q.put_async("first")
        got = [await asyncio.wait_for(waiting, SOON)]
        await q.put_async("second")
        blocked = asyncio.create_task(q.put_async("third"))
        await asyncio.sleep(0.05)
        assert not blocked.done()
        got.append(await q.get_async(timeout=SOON))
        await asyncio.wait_for(blocked, SOON)
        return [*got, await q.get_async(True, SOON)]

    assert asyncio.run(talk()) == ["first", "second", "third"]


def test_async_calls_raise_what_the_others_raise(make: Make) -> None:
    q = make(1)

    async def ask() -> None:
        for family in (ray.util.queue.Empty, queue.Empty):
            with pytest.raises(family):
                await q.get_async(block=False)
            with pytest.raises(family):
                await q.get_async(timeout=0.05)
        with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
            await q.get_async(timeout=-1)
        await q.put_async("there", block=False)
        for family in (ray.util.queue.Full, queue.Full):
            with pytest.raises(family):
                await q.put_async("more", block=False)
            with pytest.raises(family):
                await q.put_async("more", True, 0.05)
        with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
            await q.put_async("more", timeout=-1)

    asyncio.run(ask())
    assert contents(q) == ["there"]


def test_an_async_actor_awaits_a_queue_and_answers_meanwhile(make: Make) -> None:
    q = make()

    class Waiter:
        async def wait(self, q: Any) -> Any:
            return await q.get_async()

        async def answer(self) -> str:
            return "here"

    waiter = ray.remote(num_cpus=0)(Waiter).remote()
    first, second = waiter.wait.remote(q), waiter.wait.remote(q)
    assert ray.get(waiter.answer.remote(), timeout=SOON) == "here"
    q.put(1)
    q.put(2)
    assert sorted(ray.get([first, second], timeout=SOON)) == [1, 2]
    ray.kill(waiter)


# ---- the interface ----


def test_sage_queue_has_every_public_method_of_rays_with_its_parameters() -> None:
    for member in (member for member in dir(ray.util.queue.Queue) if not member.startswith("_")):
        theirs, ours = getattr(ray.util.queue.Queue, member), getattr(SageQueue, member)
        wanted = [name for name in inspect.signature(theirs).parameters]
        there = inspect.signature(ours).parameters
        if member == "shutdown":  # the standard library's `immediate` stands first, where Ray's `force` does
            assert set(wanted) <= set(there) and list(there)[1] == "immediate"
        else:
            assert list(there)[: len(wanted)] == wanted, member
            assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), member


@pytest.mark.parametrize(
    "options", [{}, {"force": False}, {"force": True}, {"grace_period_s": 1}, {"force": True, "grace_period_s": 0}]
)
def test_shutdown_takes_rays_options(make: Make, options: dict[str, Any]) -> None:
    q = make()
    q.put(1)
    q.shutdown(**options)
    with pytest.raises(ShutDown if isinstance(q, SageQueue) else AttributeError):
        q.put(2)
    if isinstance(q, SageQueue):
        assert q.qsize() == (0 if options.get("force") else 1)
        q.shutdown(True)


def test_unlike_rays_what_was_waiting_at_shutdown_can_still_be_got() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        q.shutdown(grace_period_s=5)
        assert q.get() == 1
        with pytest.raises(ShutDown):
            q.get()
    with SageQueue[int]() as q:
        q.put(1)
        q.shutdown(force=True)
        with pytest.raises(ShutDown):
            q.get()


def test_unlike_rays_every_call_after_shutdown_raises_shutdown() -> None:
    theirs = _rays()
    elsewhere = pickle.loads(ray.cloudpickle.dumps(theirs))
    theirs.shutdown(force=True)
    with pytest.raises(AttributeError):
        theirs.put(1)
    with pytest.raises(ray.exceptions.RayActorError):
        elsewhere.put(1)
    with SageQueue[int]() as q, pickle.loads(pickle.dumps(q)) as other:
        q.shutdown()
        for handle in (q, other):
            for call in (lambda: handle.put(1), lambda: handle.put_nowait(1), handle.get, handle.get_nowait):  # noqa: B023
                with pytest.raises(ShutDown):
                    call()


def test_unlike_rays_a_queue_has_no_length_and_is_true_when_it_is_empty() -> None:
    theirs = _rays()
    assert len(theirs) == 0 and not theirs
    theirs.shutdown(force=True)
    with SageQueue[int]() as q:
        assert q
        with pytest.raises(TypeError):
            len(q)  # type: ignore[arg-type]


def test_unlike_rays_a_queue_has_no_actor() -> None:
    with pytest.raises(TypeError, match="actor_options"):
        SageQueue(maxsize=1, actor_options={"num_cpus": 1})  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SageQueue(1)  # type: ignore[arg-type]  # a name
    with SageQueue[int]() as q:
        assert not hasattr(q, "actor")


# ---- both families of exceptions, and no import of Ray ----


def test_the_exceptions_of_the_module_are_the_standard_librarys() -> None:
    assert sage_queue.Empty is queue.Empty and sage_queue.Full is queue.Full


def test_ray_is_not_imported_to_raise(run_python: Run) -> None:
    code = """
import queue, sys
from sage_queue import SageQueue
q = SageQueue(maxsize=1)
try: q.get_nowait()
except queue.Empty as error: assert type(error) is queue.Empty
q.put(1)
try: q.put_nowait(2)
except queue.Full as error: assert type(error) is queue.Full
q.get()
assert not any(name.partition(".")[0] == "ray" for name in sys.modules)
"""
    run_python(code)


def test_both_families_are_raised_however_late_ray_is_imported(run_python: Run) -> None:
    code = """
import queue
from sage_queue import Empty, Full, SageQueue
q = SageQueue(maxsize=1)
try: q.get_nowait()
except Empty: pass
import ray.util.queue
for call in (q.get_nowait, lambda: q.get(timeout=0.01)):
    try: call()
    except ray.util.queue.Empty as error: assert isinstance(error, queue.Empty), error
    else: raise SystemExit("not empty")
q.put(1)
for call in (lambda: q.put_nowait(2), lambda: q.put(2, timeout=0.01)):
    try: call()
    except ray.util.queue.Full as error: assert isinstance(error, queue.Full), error
    else: raise SystemExit("not full")
q.get()
"""
    run_python(code)


def test_a_module_of_rays_that_is_only_half_imported_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.ModuleType("ray.util.queue")
    monkeypatch.setitem(sys.modules, "ray.util.queue", half)
    with SageQueue[int]() as q:
        with pytest.raises(queue.Empty, match="^Queue is empty$") as caught:
            q.get_nowait()
        assert type(caught.value) is queue.Empty
        half.Empty = "not a class yet"  # type: ignore[attr-defined]
        with pytest.raises(queue.Empty) as caught:
            q.get_nowait()
        assert type(caught.value) is queue.Empty


def test_what_is_raised_says_the_same_in_both_families_and_can_be_pickled() -> None:
    for error, text in ((_errors.empty("Queue is empty"), "Queue is empty"), (_errors.full("Queue is full"), "Queue is full")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) == text
    assert isinstance(_errors.empty(""), ray.util.queue.Empty) and isinstance(_errors.full(""), ray.util.queue.Full)


def test_code_for_rays_queue_runs_with_either(make: Make) -> None:
    """A producer and a consumer as they are written for Ray's queue: a thread, timeouts, Ray's exceptions."""
    q = make(5)
    rays = importlib.import_module("ray.util.queue")
    got: list[int] = []

    def consume() -> None:
        while len(got) < 50:
            try:
                got.append(q.get(timeout=0.5))
            except rays.Empty:
                continue

    thread = threading.Thread(target=consume)
    thread.start()
    number = 0
    while number < 50:
        try:
            q.put(number, timeout=0.5)
            number += 1
        except rays.Full:
            continue
    thread.join(SOON)
    assert got == list(range(50))
    assert q.size() == 0
