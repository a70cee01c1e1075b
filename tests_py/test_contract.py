"""What queue.Queue, multiprocessing.JoinableQueue and SageQueue promise alike, asked of all three.

Where only two of them agree, the test says which.  Every wait has a bound, so that a broken promise is a failure and not a hang.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sage_queue import SageQueue

Make = Callable[..., Any]

SOON = 20.0  # long enough for anything that should happen


def _sage(maxsize: int = 0) -> SageQueue[Any]:
    return SageQueue(maxsize=maxsize)


_MAKERS: dict[str, Make] = {
    "queue.Queue": queue.Queue,
    "multiprocessing": multiprocessing.JoinableQueue,
    "SageQueue": _sage,
}


def _makers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [pytest.param(_MAKERS[name], id=name) for name in names or _MAKERS], indirect=True)


in_process = _makers("queue.Queue", "SageQueue")
all_three = _makers()


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make queues that are closed after the test."""
    made: list[Any] = []

    def make_one(maxsize: int = 0) -> Any:
        made.append(request.param(maxsize))
        return made[-1]

    yield make_one
    for each in made:
        if hasattr(each, "close"):
            each.close()


def eventually(question: Callable[[], bool]) -> bool:
    give_up = time.monotonic() + SOON
    while not question():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.001)
    return True


# ---- order and content ----


@all_three
def test_items_come_out_in_the_order_they_went_in(make: Make) -> None:
    q = make()
    for number in range(500):
        q.put(number)
    assert [q.get(timeout=SOON) for _ in range(500)] == list(range(500))


@all_three
@pytest.mark.parametrize(
    "item",
    [None, False, 0, "", b"", (), [], {"data": [1, 2, 3], "meta": "SAGE"}, "ü" * 10_000, b"x" * 1_000_000, {1, 2}, 1 << 10_000, 1.5j],
    ids=lambda item: f"{type(item).__name__}-{len(repr(item))}",
)
def test_an_item_comes_out_equal_whatever_it_is(make: Make, item: Any) -> None:
    q = make()
    q.put(item)
    got = q.get(timeout=SOON)
    assert got == item
    assert type(got) is type(item)


@_makers("multiprocessing", "SageQueue")
def test_unlike_in_queue_dot_queue_what_comes_out_is_a_copy(make: Make) -> None:
    q = make()
    item = [1]
    q.put(item)
    got = q.get(timeout=SOON)
    got.append(2)
    assert item == [1]


def test_unlike_in_multiprocessing_an_item_is_what_it_was_when_it_was_put() -> None:
    with SageQueue[Any]() as q:
        item = {"a": 1}
        q.put(item)
        item["a"] = 2
        assert q.get() == {"a": 1}


@all_three
def test_every_item_of_many_threads_arrives_once_and_in_its_threads_order(make: Make) -> None:
    q = make(50)
    threads, each = 4, 500
    seen: list[list[tuple[int, int]]] = [[] for _ in range(threads)]

    def put(thread: int) -> None:
        for number in range(each):
            q.put((thread, number), timeout=SOON)

    def get(mine: list[tuple[int, int]]) -> None:
        for _ in range(each):
            mine.append(q.get(timeout=SOON))

    workers = [threading.Thread(target=put, args=(thread,)) for thread in range(threads)]
    workers += [threading.Thread(target=get, args=(mine,)) for mine in seen]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(item for mine in seen for item in mine) == [(t, n) for t in range(threads) for n in range(each)]
    for mine in seen:
        for thread in range(threads):
            numbers = [number for sender, number in mine if sender == thread]
            assert numbers == sorted(numbers)


# ---- empty ----


@all_three
def test_get_nowait_on_an_empty_queue_raises_empty(make: Make) -> None:
    q = make()
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(False)
    with pytest.raises(queue.Empty):
        q.get(block=False, timeout=100)


@all_three
@pytest.mark.parametrize("timeout", [0, 0.05, 0.2])
def test_get_with_a_timeout_waits_that_long_and_raises_empty(make: Make, timeout: float) -> None:
    q = make()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=timeout)
    assert time.monotonic() - start >= timeout


@all_three
def test_a_waiting_get_returns_what_another_thread_puts(make: Make) -> None:
    q = make()
    timer = threading.Timer(0.05, q.put, ("late",))
    timer.start()
    assert q.get() == "late"
    timer.join()


# ---- full ----


@all_three
def test_put_nowait_on_a_full_queue_raises_full_and_puts_nothing(make: Make) -> None:
    q = make(2)
    q.put("a")
    q.put("b")
    with pytest.raises(queue.Full):
        q.put_nowait("c")
    with pytest.raises(queue.Full):
        q.put("c", False)
    with pytest.raises(queue.Full):
        q.put("c", block=False, timeout=100)
    assert [q.get(timeout=SOON), q.get(timeout=SOON)] == ["a", "b"]
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)


@all_three
@pytest.mark.parametrize("timeout", [0, 0.05, 0.2])
def test_put_with_a_timeout_on_a_full_queue_waits_that_long_and_raises_full(make: Make, timeout: float) -> None:
    q = make(1)
    q.put("a")
    start = time.monotonic()
    with pytest.raises(queue.Full):
        q.put("b", timeout=timeout)
    assert time.monotonic() - start >= timeout


@all_three
def test_a_waiting_put_goes_on_when_another_thread_gets(make: Make) -> None:
    q = make(1)
    q.put("first")
    got: list[str] = []
    timer = threading.Timer(0.05, lambda: got.append(q.get()))
    timer.start()
    q.put("second")
    timer.join()
    assert got == ["first"]
    assert q.get(timeout=SOON) == "second"


@all_three
def test_a_queue_that_was_full_takes_as_many_again(make: Make) -> None:
    q = make(3)
    for lap in range(50):
        for number in range(3):
            q.put((lap, number), timeout=SOON)
        with pytest.raises(queue.Full):
            q.put_nowait("too many")
        assert [q.get(timeout=SOON) for _ in range(3)] == [(lap, 0), (lap, 1), (lap, 2)]


# ---- how full ----


@all_three
def test_qsize_empty_and_full_tell_how_many_are_there(make: Make) -> None:
    q = make(2)
    assert q.qsize() == 0 and q.empty() and not q.full()
    q.put("a")
    assert eventually(lambda: q.qsize() == 1 and not q.empty() and not q.full())
    q.put("b")
    assert eventually(lambda: q.qsize() == 2 and not q.empty() and q.full())
    q.get(timeout=SOON)
    assert eventually(lambda: q.qsize() == 1 and not q.empty() and not q.full())
    q.get(timeout=SOON)
    assert eventually(lambda: q.qsize() == 0 and q.empty() and not q.full())


@all_three
def test_an_empty_queue_is_true_and_has_no_length(make: Make) -> None:
    q = make()
    assert q
    assert not hasattr(q, "__len__")


@in_process
@pytest.mark.parametrize("maxsize", [0, 1, 10, 100_000])
def test_maxsize_is_an_attribute_in_items(make: Make, maxsize: int) -> None:
    assert make(maxsize).maxsize == maxsize


# ---- tasks ----


@all_three
def test_join_returns_at_once_when_nothing_was_put(make: Make) -> None:
    make().join()


@all_three
def test_task_done_more_often_than_items_were_put_is_an_error(make: Make) -> None:
    q = make()
    with pytest.raises(ValueError, match=r"^task_done\(\) called too many times$"):
        q.task_done()
    q.put("a")
    q.get(timeout=SOON)
    q.task_done()
    with pytest.raises(ValueError, match=r"^task_done\(\) called too many times$"):
        q.task_done()


@all_three
def test_join_waits_until_every_item_was_marked_done(make: Make) -> None:
    q = make()
    for number in range(3):
        q.put(number)
    joined = threading.Event()

    def join() -> None:
        q.join()
        joined.set()

    thread = threading.Thread(target=join)
    thread.start()
    for _ in range(3):
        assert not joined.wait(0.03)
        q.get(timeout=SOON)
        assert not joined.wait(0.03)
        q.task_done()
    assert joined.wait(SOON)
    thread.join()


# ---- arguments ----


@in_process
@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf")])
def test_a_negative_timeout_is_an_error(make: Make, timeout: float) -> None:
    q = make(1)
    with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
        q.get(timeout=timeout)
    q.put("a")
    with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
        q.put("b", timeout=timeout)
    assert q.qsize() == 1


@in_process
def test_a_timeout_does_not_matter_when_not_blocking(make: Make) -> None:
    q = make(1)
    with pytest.raises(queue.Empty):
        q.get(False, -1)
    q.put("a", False, -1)
    with pytest.raises(queue.Full):
        q.put("b", False, -1)


@in_process
@pytest.mark.parametrize("timeout", [1, 10**6, 0.5, True])
def test_a_timeout_is_any_number_of_seconds(make: Make, timeout: float) -> None:
    q = make(1)
    q.put("a", True, timeout)
    assert q.get(True, timeout) == "a"


@all_three
def test_arguments_go_by_position_and_by_name(make: Make) -> None:
    q = make(4)
    q.put("a", True, 1)
    q.put("b", block=True, timeout=1)
    q.put("c", timeout=None)
    q.put_nowait("d")
    assert [q.get(True, SOON), q.get(block=True, timeout=SOON), q.get(timeout=SOON), q.get(True, SOON)] == ["a", "b", "c", "d"]


def test_sage_queue_has_every_public_method_of_queue_dot_queue_with_its_parameters_first() -> None:
    import inspect

    for member in (member for member in dir(queue.Queue) if not member.startswith("_")):
        theirs, ours = getattr(queue.Queue, member), getattr(SageQueue, member)
        if callable(theirs):
            wanted = list(inspect.signature(theirs).parameters)
            assert list(inspect.signature(ours).parameters)[: len(wanted)] == wanted, member


def test_infinity_is_a_timeout() -> None:
    with SageQueue[str]() as q:
        q.put("a", timeout=float("inf"))
        assert q.get(timeout=float("inf")) == "a"
        with pytest.raises(ValueError):
            q.get(timeout=float("nan"))
