"""What queue.Queue, multiprocessing.Queue and JoinableQueue, and SageQueue promise alike, asked of all four.

Where they differ, the name of the test begins with "unlike" and says whom we are unlike; the table in docs/guarantees.md names
those tests.  Every wait has a bound, so that a broken promise is a failure and not a hang.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sage_queue import QueueClosed, SageQueue

Make = Callable[..., Any]

SOON = 20.0  # long enough for anything that should happen


def _sage(maxsize: int = 0) -> SageQueue[Any]:
    return SageQueue(maxsize=maxsize)


_MAKERS: dict[str, Make] = {
    "queue.Queue": queue.Queue,
    "multiprocessing.Queue": multiprocessing.Queue,
    "multiprocessing.JoinableQueue": multiprocessing.JoinableQueue,
    "SageQueue": _sage,
}


def _makers(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", [pytest.param(_MAKERS[name], id=name) for name in names or _MAKERS], indirect=True)


in_process = _makers("queue.Queue", "SageQueue")
joinable = _makers("queue.Queue", "multiprocessing.JoinableQueue", "SageQueue")
multiprocessings = _makers("multiprocessing.Queue", "multiprocessing.JoinableQueue")
of_processes = _makers("multiprocessing.Queue", "multiprocessing.JoinableQueue", "SageQueue")
all_four = _makers()


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


@all_four
def test_items_come_out_in_the_order_they_went_in(make: Make) -> None:
    q = make()
    for number in range(500):
        q.put(number)
    assert [q.get(timeout=SOON) for _ in range(500)] == list(range(500))


@all_four
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


@of_processes
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


def test_unlike_in_multiprocessing_what_was_put_is_there_at_once() -> None:
    with SageQueue[int]() as q:
        for number in range(1000):
            q.put(number)
            assert not q.empty()
            assert q.get_nowait() == number


class Unserializable:
    def __reduce__(self) -> Any:
        raise TypeError("it stays here")


def test_unlike_in_multiprocessing_put_says_that_an_item_cannot_be_serialized() -> None:
    with SageQueue[Any](maxsize=1) as q:
        with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(ValueError, match="it stays here"):
            q.put(Unserializable())
        assert said.getvalue() == ""
        assert q.qsize() == q.unfinished_tasks == 0
        q.put("there is room")
        assert q.get(timeout=SOON) == "there is room"


def test_a_put_by_a_finalizer_in_the_middle_of_a_put_loses_nothing() -> None:
    """(queue.Queue waits for itself there, and only SimpleQueue does not.)"""
    with SageQueue[int]() as q:
        numbers = itertools.count()

        def put_next() -> None:
            q.put(next(numbers))

        class Cycle:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                put_next()

        threshold = gc.get_threshold()
        gc.set_threshold(20)  # so that it strikes everywhere
        try:
            for _ in range(3000):
                Cycle()
                put_next()
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        assert sorted(q.get_nowait() for _ in range(6000)) == list(range(6000))
        assert q.empty()


@all_four
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


@all_four
def test_get_nowait_on_an_empty_queue_raises_empty(make: Make) -> None:
    q = make()
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(False)
    with pytest.raises(queue.Empty):
        q.get(block=False, timeout=100)


@all_four
@pytest.mark.parametrize("timeout", [0, 0.05, 0.2])
def test_get_with_a_timeout_waits_that_long_and_raises_empty(make: Make, timeout: float) -> None:
    q = make()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=timeout)
    assert time.monotonic() - start >= timeout


@all_four
def test_a_waiting_get_returns_what_another_thread_puts(make: Make) -> None:
    q = make()
    timer = threading.Timer(0.05, q.put, ("late",))
    timer.start()
    assert q.get() == "late"
    timer.join()


# ---- full ----


@all_four
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


@all_four
@pytest.mark.parametrize("timeout", [0, 0.05, 0.2])
def test_put_with_a_timeout_on_a_full_queue_waits_that_long_and_raises_full(make: Make, timeout: float) -> None:
    q = make(1)
    q.put("a")
    start = time.monotonic()
    with pytest.raises(queue.Full):
        q.put("b", timeout=timeout)
    assert time.monotonic() - start >= timeout


@all_four
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


@all_four
def test_a_queue_that_was_full_takes_as_many_again(make: Make) -> None:
    q = make(3)
    for lap in range(50):
        for number in range(3):
            q.put((lap, number), timeout=SOON)
        with pytest.raises(queue.Full):
            q.put_nowait("too many")
        assert [q.get(timeout=SOON) for _ in range(3)] == [(lap, 0), (lap, 1), (lap, 2)]


# ---- how full ----


@all_four
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


def test_unlike_in_queue_dot_queue_the_bound_is_fixed() -> None:
    with SageQueue[int](maxsize=2) as q:
        q.maxsize = 1000
        q.put(1)
        q.put(2)
        with pytest.raises(queue.Full):
            q.put_nowait(3)
        with q.get_reference().get_queue() as again:
            assert again.maxsize == 2


def test_unlike_in_queue_dot_queue_memory_is_bounded_without_maxsize_too() -> None:
    with SageQueue[bytes](capacity="64 KiB", arena=0) as q:
        with pytest.raises(queue.Full):
            for _ in range(1000):
                q.put(bytes(1000), timeout=0)
        count = q.qsize()
        assert 0 < count < 66 and q.full()
        timer = threading.Timer(0.05, q.get)
        timer.start()
        q.put(bytes(1000), timeout=SOON)
        timer.join()
        assert q.qsize() == count


@pytest.mark.parametrize("make", [queue.Queue, multiprocessing.Queue, multiprocessing.JoinableQueue])
def test_unlike_in_the_others_a_negative_maxsize_is_an_error(make: Make) -> None:
    theirs = make(-1)
    for number in range(10):
        theirs.put_nowait(number)
    assert not theirs.full()
    for _ in range(10):
        theirs.get(timeout=SOON)
    if hasattr(theirs, "close"):
        theirs.close()
    with pytest.raises(ValueError, match="maxsize=-1 is negative"):
        SageQueue(maxsize=-1)


def test_unlike_in_queue_dot_queue_there_are_no_locks_to_take() -> None:
    inside = {"mutex", "not_empty", "not_full", "all_tasks_done", "queue"}
    assert inside <= set(dir(queue.Queue()))
    with SageQueue[int]() as q:
        assert not inside & set(dir(q))


@all_four
def test_an_empty_queue_is_true_and_has_no_length(make: Make) -> None:
    q = make()
    assert q
    assert not hasattr(q, "__len__")


@in_process
@pytest.mark.parametrize("maxsize", [0, 1, 10, 100_000])
def test_maxsize_is_an_attribute_in_items(make: Make, maxsize: int) -> None:
    assert make(maxsize).maxsize == maxsize


# ---- tasks ----


@joinable
def test_join_returns_at_once_when_nothing_was_put(make: Make) -> None:
    make().join()


@joinable
def test_task_done_more_often_than_items_were_put_is_an_error(make: Make) -> None:
    q = make()
    with pytest.raises(ValueError, match=r"^task_done\(\) called too many times$"):
        q.task_done()
    q.put("a")
    q.get(timeout=SOON)
    q.task_done()
    with pytest.raises(ValueError, match=r"^task_done\(\) called too many times$"):
        q.task_done()


@joinable
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


@multiprocessings
def test_unlike_in_multiprocessing_a_negative_timeout_is_an_error(make: Make) -> None:
    with pytest.raises(queue.Empty):
        make().get(timeout=-1)
    with SageQueue[int](maxsize=1) as q:
        with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
            q.get(timeout=-1)
        with pytest.raises(ValueError, match="^'timeout' must be a non-negative number$"):
            q.put(1, timeout=-1)
        assert q.empty()


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


@all_four
def test_arguments_go_by_position_and_by_name(make: Make) -> None:
    q = make(4)
    q.put("a", True, 1)
    q.put("b", block=True, timeout=1)
    q.put("c", timeout=None)
    q.put_nowait("d")
    assert [q.get(True, SOON), q.get(block=True, timeout=SOON), q.get(timeout=SOON), q.get(True, SOON)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("other", [queue.Queue, multiprocessing.queues.Queue, multiprocessing.queues.JoinableQueue])
def test_sage_queue_has_every_public_method_of_theirs_with_its_parameters_first(other: type) -> None:
    import inspect

    for member in (member for member in dir(other) if not member.startswith("_")):
        theirs, ours = getattr(other, member), getattr(SageQueue, member)
        if callable(theirs):
            parameters = inspect.signature(theirs).parameters
            wanted = ["item" if parameter == "obj" else parameter for parameter in parameters]  # multiprocessing says obj
            assert list(inspect.signature(ours).parameters)[: len(wanted)] == wanted, member


def test_infinity_is_a_timeout() -> None:
    with SageQueue[str]() as q:
        q.put("a", timeout=float("inf"))
        assert q.get(timeout=float("inf")) == "a"
        with pytest.raises(ValueError):
            q.get(timeout=float("nan"))


def test_size_is_qsize() -> None:
    with SageQueue[int]() as q:
        assert q.size() == q.qsize() == 0
        q.put(1)
        assert q.size() == q.qsize() == 1


@in_process
def test_unfinished_tasks_counts_what_was_put_and_not_yet_done(make: Make) -> None:
    q = make()
    assert q.unfinished_tasks == 0
    q.put(1)
    q.put(2)
    assert q.unfinished_tasks == 2
    q.get()
    assert q.unfinished_tasks == 2
    q.task_done()
    assert q.unfinished_tasks == 1


# ---- several processes ----


def _work(tasks: Any, results: Any) -> None:
    while (task := tasks.get()) is not None:
        results.put((os.getpid(), task * task))
        tasks.task_done()
    tasks.task_done()


_OF_A_CONTEXT: dict[str, Make] = {"JoinableQueue": lambda context: context.JoinableQueue(), "SageQueue": lambda context: _sage()}


@pytest.mark.parametrize("make_in", [pytest.param(make, id=kind) for kind, make in _OF_A_CONTEXT.items()])
def test_workers_take_tasks_and_answer_and_join_waits_for_them(context: Any, make_in: Make) -> None:
    tasks, results = make_in(context), make_in(context)
    workers = [context.Process(target=_work, args=(tasks, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for number in range(200):
        tasks.put(number)
    for _ in workers:
        tasks.put(None)
    tasks.join()
    answers = [results.get(timeout=SOON) for _ in range(200)]
    for worker in workers:
        worker.join(SOON)
        assert worker.exitcode == 0
    assert sorted(square for _, square in answers) == [number * number for number in range(200)]
    assert {pid for pid, _ in answers} <= {worker.pid for worker in workers}
    for each in (tasks, results):
        each.close()


@multiprocessings
def test_unlike_in_multiprocessing_a_queue_can_be_pickled_at_any_time(make: Make) -> None:
    with pytest.raises(RuntimeError):
        pickle.dumps(make())
    with SageQueue[int]() as q, pickle.loads(pickle.dumps(q)) as same:
        q.put(1)
        assert same.get(timeout=SOON) == 1


# ---- the end ----


@of_processes
def test_a_closed_queue_puts_and_gets_nothing_and_may_be_closed_again(make: Make) -> None:
    q = make()
    q.put(1)
    assert q.get(timeout=SOON) == 1
    q.close()
    q.close()
    q.join_thread()
    for call in (lambda: q.put(1), q.get, q.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()


@multiprocessings
def test_unlike_in_multiprocessing_every_call_on_a_closed_queue_says_that_it_is_closed(make: Make) -> None:
    unused = make()
    unused.close()
    assert unused.qsize() == 0
    q = SageQueue[int]()
    q.close()
    for call in (q.empty, q.full, q.qsize, q.size, q.task_done, q.join, q.shutdown, q.get_stats, q.get, lambda: q.put(1)):
        with pytest.raises(QueueClosed, match="^Queue is closed$") as caught:
            call()
        assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, ValueError)
        assert not isinstance(caught.value, OSError)


@multiprocessings
def test_unlike_in_multiprocessing_there_is_no_thread_to_join(make: Make) -> None:
    theirs = make()
    theirs.put(1)
    with pytest.raises(AssertionError):
        theirs.join_thread()
    threads = set(threading.enumerate())
    with SageQueue[int]() as q:
        q.put(1)
        q.join_thread()
        q.cancel_join_thread()
        assert set(threading.enumerate()) <= threads  # others' may end meanwhile
        assert q.get() == 1
    theirs.get(timeout=SOON)
