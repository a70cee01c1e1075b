"""From the first handle to the last: opening modes, closing, who removes what and when."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue

SOON = 20.0
Run = Callable[..., subprocess.CompletedProcess[str]]


def files(directory: pathlib.Path) -> int:
    return len(list(directory.iterdir()))


# ---- opening ----


def test_one_name_is_one_queue(name: str) -> None:
    with SageQueue[int](name) as one, SageQueue[int](name) as other:
        one.put(1)
        assert other.qsize() == 1
        assert other.get() == 1
        assert one.empty()


def test_an_existing_queue_keeps_its_own_sizes(name: str) -> None:
    with SageQueue[int](name, 3, capacity=8192) as first, SageQueue[int](name, 99, capacity="1 MiB") as second:
        assert (second.maxsize, second.capacity) == (first.maxsize, first.capacity) == (3, 8192)


def test_fresh_replaces_a_queue_that_nobody_holds(name: str) -> None:
    with SageQueue[int](name) as q:
        q.put(1)
        old = q.get_reference()
    with SageQueue[int](name, 5, mode="fresh") as q:
        assert q.empty() and q.maxsize == 5
        assert q.get_reference() != old


@pytest.mark.parametrize("mode", ["open_or_create", "create", "fresh"])
def test_every_creating_mode_creates(name: str, mode: Any) -> None:
    with SageQueue[int](name, mode=mode) as q:
        q.put(1)
        assert q.get() == 1


def test_unnamed_queues_are_different_ones() -> None:
    with SageQueue[int]() as one, SageQueue[int]() as other:
        assert one.name != other.name
        one.put(1)
        assert other.empty()


def test_many_threads_creating_one_name_at_once_get_one_queue(name: str) -> None:
    ready = threading.Barrier(8)
    made: list[SageQueue[int]] = []

    def make() -> None:
        ready.wait()
        made.append(SageQueue[int](name))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({q.get_reference() for q in made}) == 1
    for number, q in enumerate(made):
        q.put(number)
    assert [made[0].get() for _ in made] == list(range(8))
    for q in made:
        q.close()


# ---- leaving ----


def test_the_last_one_out_removes_an_empty_queue(name: str, queue_directory: pathlib.Path) -> None:
    one, other = SageQueue[int](name), SageQueue[int](name)
    one.put(1)
    one.get()
    one.close()
    assert files(queue_directory) == 1
    other.put(2)
    assert other.get() == 2
    other.close()
    assert files(queue_directory) == 0


def test_a_queue_with_messages_stays_for_the_next_one(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name) as q:
        q.put(1)
        q.put(2)
    assert files(queue_directory) == 1
    with SageQueue[int](name, mode="open") as q:
        assert [q.get(), q.get()] == [1, 2]
    assert files(queue_directory) == 0


def test_auto_cleanup_removes_a_queue_with_messages_too(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name, auto_cleanup=True) as q, SageQueue[int](name) as other:
        assert q.auto_cleanup and other.auto_cleanup
        q.put(1)
        q.close()
        assert other.qsize() == 1
    assert files(queue_directory) == 0


def test_an_unnamed_queue_never_stays(queue_directory: pathlib.Path) -> None:
    with SageQueue[int]() as q:
        q.put(1)
    assert files(queue_directory) == 0


def test_a_persistent_queue_stays_when_it_is_empty(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name, persistent=True) as q:
        q.put(1)
        q.get()
    assert files(queue_directory) == 1
    with SageQueue[int](name, mode="open") as q:
        assert q.get_stats()["puts"] == 1
    assert sage_queue.collect_garbage() == 0
    assert sage_queue.destroy_queue(name)


def test_destroy_removes_the_name_and_leaves_the_others_alone(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name) as q, SageQueue[int](name) as other:
        q.put(1)
        q.destroy()
        assert q.is_closed() and files(queue_directory) == 0
        assert other.get() == 1
        other.put(2)
        with SageQueue[int](name) as new:
            assert new.empty()


def test_destroy_after_close_removes_this_queue_and_no_later_one(name: str, queue_directory: pathlib.Path) -> None:
    q = SageQueue[int](name)
    q.put(1)
    q.close()
    assert files(queue_directory) == 1
    q.destroy()
    assert files(queue_directory) == 0
    q.destroy()
    with SageQueue[int](name) as later:
        q.destroy()
        assert files(queue_directory) == 1
        later.put(1)
        assert later.get() == 1


def test_collecting_garbage_leaves_alone_what_is_in_use_or_full(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name) as used, SageQueue[int](name + "-full") as full:
        full.put(1)
        full.close()
        assert sage_queue.collect_garbage() == 0
        assert files(queue_directory) == 2
        used.put(1)
        assert used.get() == 1
    assert sage_queue.destroy_queue(name + "-full")


KILLED = """
import os, signal, sys
from sage_queue import SageQueue
queues = [SageQueue(sys.argv[1]), SageQueue(sys.argv[1] + "-auto", auto_cleanup=True), SageQueue()]
queues[1].put(1); queues[2].put(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_collected(name: str, run_python: Run, queue_directory: pathlib.Path) -> None:
    run_python(KILLED, name, check=False)
    assert files(queue_directory) == 3
    assert sage_queue.collect_garbage() == 3
    assert files(queue_directory) == 0


# ---- closing ----


def test_close_may_be_called_twice_and_from_any_thread(name: str) -> None:
    q = SageQueue[int](name)
    assert not q.is_closed()
    threads = [threading.Thread(target=q.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    q.close()
    assert q.is_closed()


@pytest.mark.parametrize("call", ["get", "put", "join"])
def test_close_ends_calls_that_wait_in_other_threads(call: str) -> None:
    q = SageQueue[int](maxsize=1)
    if call != "get":
        q.put(1)
    outcomes: list[BaseException | None] = []

    def wait() -> None:
        try:
            {"get": q.get, "put": lambda: q.put(2), "join": q.join}[call]()
            outcomes.append(None)
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    q.close()
    for thread in threads:
        thread.join(SOON)
    assert [type(outcome) for outcome in outcomes] == [sage_queue.QueueClosed] * 4


@pytest.mark.parametrize("size", [10, 10_000], ids=["copied", "in place"])
def test_closing_under_busy_threads_loses_and_doubles_nothing(name: str, size: int) -> None:
    messages, got = 600, []
    with SageQueue[Any](name) as source:
        for number in range(messages):
            source.put((number, b"x" * size), timeout=SOON) if number < 200 else None
        for _ in range(12):
            q = SageQueue[Any](name)
            results: list[list[int]] = [[] for _ in range(4)]

            def drain(mine: list[int], q: SageQueue[Any] = q) -> None:
                try:
                    while True:
                        mine.append(q.get()[0])
                except sage_queue.QueueClosed:
                    pass

            threads = [threading.Thread(target=drain, args=(mine,)) for mine in results]
            for thread in threads:
                thread.start()
            time.sleep(0.0005)
            q.close()
            for thread in threads:
                thread.join(SOON)
                assert not thread.is_alive()
            got += [number for mine in results for number in mine]
        while not source.empty():
            got.append(source.get()[0])
    assert sorted(got) == list(range(200))


def test_a_message_whose_queue_is_closed_while_it_is_decoded_goes_back(name: str) -> None:
    with SageQueue[Any](name) as q, SageQueue[Any](name) as reader:
        q.put([Slow(), b"x" * 100_000])
        errors: list[Exception] = []

        def get() -> None:
            try:
                reader.get()
            except sage_queue.QueueClosed as error:
                errors.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        assert Slow.started.wait(SOON)
        reader.close()  # does not wait for the decoding, which has a copy
        assert q.qsize() == 1
        Slow.go_on.set()
        thread.join(SOON)
        assert len(errors) == 1
        assert q.get() == ["slow", b"x" * 100_000]


class Slow:
    """Takes its time to be unpickled."""

    started = threading.Event()
    go_on = threading.Event()

    def __reduce__(self) -> Any:
        return _slowly, ()


def _slowly() -> str:
    Slow.started.set()
    assert Slow.go_on.wait(SOON)
    return "slow"


class ClosesItsQueue:
    """Closes the queue that it is unpickled from."""

    queue: SageQueue[Any]

    def __reduce__(self) -> Any:
        return _close_it, ()


def _close_it() -> str:
    ClosesItsQueue.queue.close()
    return "closed"


@pytest.mark.parametrize("padding", [b"", b"x" * 100_000], ids=["copied", "in place"])
def test_a_queue_can_be_closed_while_one_of_its_own_messages_is_decoded(name: str, padding: bytes) -> None:
    with SageQueue[Any](name) as q:
        ClosesItsQueue.queue = reader = SageQueue[Any](name)
        q.put((padding, ClosesItsQueue()))
        with pytest.raises(sage_queue.QueueClosed):
            reader.get()
        assert q.qsize() == 1  # it went back
        assert q.get_stats()["participants"] == 1
        ClosesItsQueue.queue = SageQueue[Any]()
        assert q.get() == (padding, "closed")


def test_a_context_manager_closes_also_after_an_error(name: str) -> None:
    with pytest.raises(ZeroDivisionError), SageQueue[int](name) as q:
        1 / 0
    assert q.is_closed()


def test_a_dropped_queue_closes_itself(name: str, queue_directory: pathlib.Path) -> None:
    q = SageQueue[int](name)
    assert files(queue_directory) == 1
    del q
    gc.collect()
    assert files(queue_directory) == 0


def test_a_queue_that_was_never_opened_can_be_dropped(recwarn: pytest.WarningsRecorder) -> None:
    q = SageQueue.__new__(SageQueue)
    q.__del__()
    del q
    with pytest.raises(ValueError):
        SageQueue(maxsize=-1)
    gc.collect()
    assert not list(recwarn)


def test_join_thread_and_cancel_join_thread_return_at_once() -> None:
    with SageQueue[int]() as q:
        q.put(1)
        q.cancel_join_thread()
        q.join_thread()
        q.close()
        q.join_thread()


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError",
        "del q",
        "q.close()",
        "import atexit; atexit.register(lambda: (q.put(1), q.get()))",
        "import threading; threading.Thread(target=q.get, daemon=True).start(); import time; time.sleep(0.05)",
        "cycle = [q]; cycle.append(cycle); del q, cycle; import gc; gc.disable()",
        "import sage_queue; sage_queue.kept = q",
        "q.self = q",
        "os.kill(os.getpid(), signal.SIGINT)",
        "import multiprocessing, multiprocessing.util; other = SageQueue()",
    ],
)
def test_a_process_leaves_nothing_and_says_nothing_however_it_ends(
    name: str, run_python: Run, queue_directory: pathlib.Path, ending: str
) -> None:
    code = f"import os, signal, sys\nfrom sage_queue import SageQueue\nq = SageQueue(sys.argv[1])\nq.put(1); q.get()\n{ending}"
    done = run_python(code, name, check=False)
    assert files(queue_directory) == 0
    assert done.stdout == ""
    if not ending.startswith(("raise", "os.kill")):
        assert done.stderr == ""


# ---- being an object ----


def test_repr_says_name_fill_and_state(name: str) -> None:
    q = SageQueue[int](name, 3)
    q.put(1)
    assert repr(q) == f"<SageQueue '{name}': 1/3 items, open>"
    q.get()
    q.close()
    assert repr(q) == f"<SageQueue '{name}': closed>"
    with SageQueue[int](name) as q:
        assert repr(q) == f"<SageQueue '{name}': 0 items, open>"


def test_attributes_can_be_added() -> None:
    with SageQueue[int]() as q:
        q.logger = "mine"  # type: ignore[attr-defined]
        assert q.logger == "mine"  # type: ignore[attr-defined]


def test_stats_count_everything_over_all_handles(name: str) -> None:
    with SageQueue[bytes](name, capacity=65536, serializer="raw") as q, SageQueue[bytes](name, serializer="raw") as other:
        for _ in range(5):
            q.put(b"x" * 1000)
        for _ in range(2):
            other.get()
        stats = q.get_stats()
        assert stats == other.get_stats()
        assert (stats["total_bytes_written"], stats["total_bytes_read"]) == (5000, 2000)
        assert (stats["puts"], stats["gets"], stats["items"], stats["unfinished"]) == (5, 2, 3, 5)
        assert (stats["ref_count"], stats["writers"], stats["readers"]) == (2, 1, 1)
        assert stats["buffer_size"] == 65536
        assert stats["available_read"] + stats["available_write"] == 65536
        assert stats["available_read"] >= 3000
        assert stats["utilization"] == stats["available_read"] / 65536
        for _ in range(3):
            q.get()


def test_statistics_know_every_one_of_many_who_are_attached() -> None:
    with SageQueue[Any]() as q:
        others = [q.get_reference().get_queue() for _ in range(40)]
        for other in others[:33]:
            other.put("item")
        stats = q.get_stats()
        assert (stats["ref_count"], stats["writers"], stats["readers"]) == (41, 33, 0)
        for other in others:
            other.close()



def test_a_label_is_how_others_see_this_process(name: str) -> None:
    from sage_queue import _native

    with SageQueue[int](name, label="worker 7") as q:
        (peer,) = _native.peers(q._handle)
        assert (peer["label"], peer["pid"]) == ("worker 7", os.getpid())


def test_full_agrees_with_put_nowait_also_when_bytes_are_the_bound(name: str) -> None:
    with SageQueue[bytes](name, capacity=65536, serializer="raw", auto_cleanup=True) as q:
        put = 0
        while not q.full():
            q.put_nowait(b"x" * 1000)
            put += 1
        with pytest.raises(sage_queue.Full):
            q.put_nowait(b"x" * 1000)
        assert 40 <= put <= 65
        q.get()
        assert not q.full()
        q.put_nowait(b"x" * 1000)
