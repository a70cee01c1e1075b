"""shutdown() as in CPython 3.13's queue.Queue, there against the original, and on older Pythons by itself."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, ShutDown

Make = Callable[..., Any]
SOON = 20.0


@pytest.fixture(params=["SageQueue", *(["queue.Queue"] if sys.version_info >= (3, 13) else [])])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Any] = []

    def make_one(maxsize: int = 0) -> Any:
        made.append(SageQueue(maxsize=maxsize) if request.param == "SageQueue" else queue.Queue(maxsize))
        return made[-1]

    yield make_one
    for each in made:
        if hasattr(each, "close"):
            each.close()


def test_shutdown_is_the_standard_librarys_where_it_has_one() -> None:
    if sys.version_info >= (3, 13):
        assert ShutDown is queue.ShutDown
    else:
        assert issubclass(ShutDown, sage_queue.SageQueueError)


def test_after_shutdown_put_raises_and_get_drains_then_raises(make: Make) -> None:
    q = make()
    q.put("a")
    q.put("b")
    q.shutdown()
    for put in (lambda: q.put("c"), lambda: q.put_nowait("c"), lambda: q.put("c", timeout=1)):
        with pytest.raises(ShutDown):
            put()
    assert q.qsize() == 2
    assert [q.get(), q.get_nowait()] == ["a", "b"]
    for get in (q.get, q.get_nowait, lambda: q.get(timeout=1)):
        with pytest.raises(ShutDown):
            get()


def test_after_an_immediate_shutdown_nothing_is_left_to_get(make: Make) -> None:
    q = make()
    q.put("a")
    q.put("b")
    q.shutdown(immediate=True)
    assert q.qsize() == 0
    for call in (q.get, q.get_nowait, lambda: q.put("c"), lambda: q.put_nowait("c")):
        with pytest.raises(ShutDown):
            call()


def test_shutdown_may_be_called_twice_and_made_immediate_later(make: Make) -> None:
    q = make()
    q.put("a")
    q.shutdown()
    q.shutdown()
    assert q.qsize() == 1
    q.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        q.get()


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_waiting_gets(make: Make, immediate: bool) -> None:
    q = make()
    _ends_with_shutdown(q.get, lambda: q.shutdown(immediate))


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_ends_waiting_puts(make: Make, immediate: bool) -> None:
    q = make(1)
    q.put("a")
    _ends_with_shutdown(lambda: q.put("b"), lambda: q.shutdown(immediate))
    if not immediate:
        assert q.get() == "a"


def test_a_shut_down_queue_can_be_joined_when_what_was_in_it_is_done(make: Make) -> None:
    q = make()
    q.put("a")
    q.put("b")
    q.shutdown()
    for _ in range(2):
        q.get()
        q.task_done()
    q.join()


def test_an_immediate_shutdown_marks_what_it_throws_away_as_done(make: Make) -> None:
    q = make()
    for item in "abc":
        q.put(item)
    q.get()
    joined = threading.Event()
    thread = threading.Thread(target=lambda: (q.join(), joined.set()))
    thread.start()
    q.shutdown(immediate=True)
    assert not joined.wait(0.05)  # "a" was got and is not done
    q.task_done()
    assert joined.wait(SOON)
    thread.join()
    with pytest.raises(ValueError):
        q.task_done()


def test_shutdown_is_the_queues_not_the_handles(name: str) -> None:
    with SageQueue[str](name) as mine, SageQueue[str](name) as yours:
        mine.put("a")
        mine.shutdown()
        assert yours.get() == "a"
        with pytest.raises(ShutDown):
            yours.put("b")
        with SageQueue[str](name) as late, pytest.raises(ShutDown):
            late.get()


def _ends_with_shutdown(call: Callable[[], Any], shut_down: Callable[[], Any]) -> None:
    outcomes: list[BaseException | None] = []
    started = threading.Barrier(5)

    def wait() -> None:
        started.wait()
        try:
            call()
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    threading.Event().wait(0.05)
    shut_down()
    for thread in threads:
        thread.join(SOON)
    assert [type(outcome) for outcome in outcomes] == [ShutDown] * 4
