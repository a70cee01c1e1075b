"""get(copy=False): what comes out looks at the queue's memory, for exactly as long as something looks."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any

import pytest
from helpers import SOON, WITH_HELPERS, Run, until

import sage_queue
from sage_queue import SageQueue, _native

numpy = pytest.importorskip("numpy")


def held(q: SageQueue[Any]) -> int:
    count: int = q.get_stats()["held"]
    return count


def array(number: int, size: int = 200_000) -> Any:
    return numpy.full(size, number % 251, "u1")


# ---- views ----


def test_a_view_is_of_the_memory_of_the_queue_and_is_given_back_when_it_dies() -> None:
    with SageQueue[Any]() as q:
        q.put({"x": array(1), "y": array(2)})
        got = q.get(copy=False)
        assert (got["x"] == 1).all() and (got["y"] == 2).all()
        stats = q.get_stats()
        assert (stats["held"], stats["leased"], stats["items"], stats["gets"]) == (1, 0, 0, 1)
        assert stats["arena_used_bytes"] >= 400_000
        x = got["x"][1000:2000]
        del got
        assert held(q) == 1  # a part of a part keeps it all
        assert (x == 1).all()
        del x
        assert held(q) == q.get_stats()["arena_used_bytes"] == 0


def test_a_view_is_read_only_unless_asked_otherwise() -> None:
    with SageQueue[Any]() as q:
        for _ in range(2):
            q.put([array(1)])
        (view,) = q.get(copy=False)
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5
        with pytest.raises(ValueError):
            view.flags.writeable = True
        (own,) = q.get(copy=False, writable=True)
        own[:] = 5
        assert (own == 5).all() and (view == 1).all()


def test_what_is_written_into_a_view_reaches_nobody_else() -> None:
    with SageQueue[Any](arena="1 MiB") as q:
        for number in range(20):
            q.put(array(number))
            view = q.get(copy=False, writable=True)
            assert (view == number).all()
            view[:] = 255
            q.put(array(number + 100))
            assert (q.get() == number + 100).all()
            assert (view == 255).all()


@pytest.mark.parametrize("size", [1, 1000, 1025, 4000, 30_000], ids=lambda size: f"{size} bytes")
def test_what_is_small_behaves_the_same_and_holds_nothing(size: int) -> None:
    with SageQueue[Any]() as q:
        for writable in (False, True):
            q.put(array(7, size))
            got = q.get(copy=False, writable=writable)
            assert (got == 7).all()
            assert got.flags.writeable == (writable or size <= 1024)  # what is in the pickle is the object's own
            assert held(q) == 0


def test_an_object_without_buffers_is_decoded_where_it_lies_and_holds_nothing() -> None:
    with SageQueue[Any]() as q:
        item = {"text": "x" * 300_000, "numbers": list(range(10_000))}
        q.put(item)
        assert q.get(copy=False) == item
        assert held(q) == q.get_stats()["arena_used_bytes"] == 0


def test_views_of_raw_messages_are_memoryviews() -> None:
    with SageQueue[Any](serializer="raw") as q:
        for size in (0, 1, 5000, 70_000):
            q.put(b"x" * size)
            view = q.get(copy=False)
            assert type(view) is memoryview and view.readonly and view == b"x" * size
        assert held(q) == 1
        view.release()
        assert held(q) == 0
        q.put(b"x" * 70_000)
        own = q.get(copy=False, writable=True)
        own[:2] = b"ab"
        assert bytes(own[:3]) == b"abx"


def test_a_hundred_views_are_held_while_a_small_ring_turns_over_thousands_of_times() -> None:
    with SageQueue[Any](capacity="64 KiB", arena="64 MiB") as q:
        views = []
        for number in range(100):
            q.put(array(number))
            views.append(q.get(copy=False))
        for number in range(20_000):
            q.put((number, "x" * (number % 300)))
            assert q.get()[0] == number
        for number in range(300):
            q.put(array(number + 50, 500_000))
            assert (q.get() == (number + 50) % 251).all()
        assert all((view == number).all() for number, view in enumerate(views))
        assert held(q) == 100
        views.clear()
        assert held(q) == 0


def test_waiting_and_polling_work_as_for_any_get() -> None:
    with SageQueue[Any]() as q:
        for call in (lambda: q.get(False, copy=False), lambda: q.get(timeout=0.02, copy=False, writable=True)):
            with pytest.raises(sage_queue.Empty):
                call()
        timer = threading.Timer(0.05, q.put, (array(1),))
        timer.start()
        assert (q.get(copy=False, timeout=SOON) == 1).all()
        timer.join()
        q.shutdown()
        with pytest.raises(sage_queue.ShutDown):
            q.get(copy=False)
    with pytest.raises(sage_queue.QueueClosed):
        q.get(copy=False)


# ---- what they survive ----


def test_a_view_survives_close_and_the_queue_itself(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[Any](name) as witness:
        q = SageQueue[Any](name)
        q.put(array(1))
        q.put(array(2))
        one, two = q.get(copy=False), q.get(copy=False, writable=True)
        q.close()
        two[0] = 9
        assert (one == 1).all() and two[0] == 9 and (two[1:] == 2).all()
        del q
        gc.collect()
        assert (one == 1).all() and two[0] == 9 and (two[1:] == 2).all()
        assert held(witness) == 2
        del one
        assert held(witness) == 1
        del two
        assert held(witness) == 0
        assert witness.get_stats()["participants"] == 1


def test_the_last_view_removes_the_queue_that_its_user_closed(queue_directory: pathlib.Path) -> None:
    q = SageQueue[Any]()
    q.put(array(1))
    view = q.get(copy=False)
    q.close()
    assert (view == 1).all()
    assert len(list(queue_directory.iterdir())) == 1
    del view
    assert list(queue_directory.iterdir()) == []


def test_the_last_view_may_die_in_another_thread() -> None:
    with SageQueue[Any]() as q:
        for number in range(50):
            q.put(array(number))
        views = [q.get(copy=False) for _ in range(50)]
        threads = [threading.Thread(target=lambda: [views.pop() for _ in range(10)]) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert held(q) == 0


def test_a_view_can_be_put_into_the_queue_that_it_came_from() -> None:
    with SageQueue[Any](arena="1 MiB") as q:
        q.put(array(3))
        for _ in range(20):
            q.put(q.get(copy=False))
        assert (q.get() == 3).all()
        assert held(q) == 0


def _look_and_leave(views: list[Any], results: Any) -> None:
    good = all((view == number).all() for number, view in enumerate(views))
    views.clear()
    gc.collect()
    results.put(good)


def test_a_forked_child_can_look_and_let_go_and_the_parent_keeps_its_views() -> None:
    fork = multiprocessing.get_context("fork")
    with SageQueue[Any]() as q, SageQueue[bool]() as results:
        for number in range(5):
            q.put(array(number))
        views = [q.get(copy=False) for _ in range(5)]
        child = fork.Process(target=_look_and_leave, args=(views, results))
        child.start()
        assert results.get(timeout=SOON)
        child.join(SOON)
        assert child.exitcode == 0
        assert held(q) == 5
        assert all((view == number).all() for number, view in enumerate(views))
        views.clear()
        assert held(q) == 0


def test_a_forked_child_can_look_after_the_parent_closed_and_left(run_python: Run) -> None:
    code = """
import os, sys, time
import numpy
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
q.put(numpy.full(200_000, 7, "u1"))
view = q.get(copy=False)
reader, writer = os.pipe()
if os.fork():
    q.close()
    del view, q
    os._exit(0)
os.close(writer)
while os.getppid() == int(sys.argv[2]):
    time.sleep(0.01)
assert (view == 7).all()
q.put(view)
assert (q.get() == 7).all()
del view
q.close()
with open(sys.argv[3], "w") as file:
    file.write("good")
"""
    import tempfile

    # The first process ends while the second looks on; who waits for both is this file.
    with tempfile.TemporaryDirectory() as directory:
        done = pathlib.Path(directory) / "done"
        run_python(f"import os, sys; sys.argv[2] = str(os.getpid()); exec({code!r})", f"orphan-{os.getpid()}", "", str(done))
        until(done.exists)
        until(lambda: done.read_text() == "good")


def test_the_interpreter_can_end_with_views_alive(name: str, run_python: Run, queue_directory: pathlib.Path) -> None:
    code = """
import sys
import numpy
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
for number in range(5):
    q.put({"x": numpy.full(200_000, number, "u1"), "y": "text"})
class Keeper: pass
keeper = Keeper(); keeper.me = keeper; keeper.views = [q.get(copy=False) for _ in range(4)]
sys.modules["sage_queue_keeper"] = keeper
import builtins; builtins.kept = q.get(copy=False)
if sys.argv[2] == "closed": q.close()
if sys.argv[2] == "deleted": del q
print(keeper.views[2]["x"][0])
"""
    for how in ("open", "closed", "deleted"):
        done = run_python(code, name, how)
        assert (done.stdout, done.stderr) == ("2\n", "")
        assert list(queue_directory.iterdir()) == []


def _leave_with_views(q: SageQueue[Any], ready: Any, go: Any) -> None:
    globals()["kept"] = [q.get(copy=False) for _ in range(3)]
    ready.set()
    go.wait(SOON)


def test_a_child_of_multiprocessing_can_be_the_last_and_leave_with_its_views(context: Any, queue_directory: pathlib.Path) -> None:
    ready, go = context.Event(), context.Event()
    with SageQueue[Any]() as q:
        for number in range(3):
            q.put(array(number))
        child = context.Process(target=_leave_with_views, args=(q, ready, go))
        child.start()
        assert ready.wait(SOON)
    assert len(list(queue_directory.iterdir())) == 1
    go.set()
    child.join(SOON)
    assert child.exitcode == 0
    assert list(queue_directory.iterdir()) == []


def test_the_views_of_a_child_that_left_are_given_back(context: Any) -> None:
    ready, go = context.Event(), context.Event()
    go.set()
    with SageQueue[Any]() as q:
        for number in range(3):
            q.put(array(number))
        child = context.Process(target=_leave_with_views, args=(q, ready, go))
        child.start()
        child.join(SOON)
        assert child.exitcode == 0
        with pytest.raises(sage_queue.Empty):
            q.get(timeout=0.3)  # who waits looks for those that are gone
        assert (held(q), q.get_stats()["participants"]) == (0, 1)


def test_the_views_of_a_killed_process_are_given_back(name: str, run_python: Run) -> None:
    code = """
import os, signal, sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
kept = [q.get(copy=False) for _ in range(5)]
assert q.get_stats()["held"] == 5
os.kill(os.getpid(), signal.SIGKILL)
"""
    with SageQueue[Any](name) as q:
        for number in range(6):
            q.put(array(number))
        assert run_python(code, name, check=False).returncode == -signal.SIGKILL
        assert (q.get(timeout=SOON) == 5).all()  # and those that were delivered do not come again
        with pytest.raises(sage_queue.Empty):
            q.get(timeout=0.3)
        assert (held(q), q.get_stats()["recoveries"]) == (0, 1)
        assert not any(count for what, count in _native.check_arena(q._handle).items())


# ---- what goes wrong ----


def _refuse(view: Any) -> None:
    raise RuntimeError("not today")


class Refusing:
    def __reduce__(self) -> Any:
        return _refuse, (array(1),)


def test_a_message_that_cannot_be_decoded_is_consumed_and_freed_with_its_error() -> None:
    with SageQueue[Any]() as q:
        q.put(Refusing())
        q.put("after")
        with pytest.raises(ValueError, match="Failed to deserialize item: not today") as caught:
            q.get(copy=False)
        frames = caught.value.__cause__.__traceback__
        while frames.tb_next is not None:
            frames = frames.tb_next
        assert (frames.tb_frame.f_locals["view"] == 1).all()  # the error still looks at it
        assert (held(q), q.qsize()) == (1, 1)
        del caught, frames
        gc.collect()
        assert held(q) == q.get_stats()["leased"] == 0
        assert q.get() == "after"


class Interrupted:
    left = 0

    def __reduce__(self) -> Any:
        return _interrupt, (array(5),)


def _interrupt(view: Any) -> Any:
    if Interrupted.left:
        Interrupted.left -= 1
        raise KeyboardInterrupt
    return view


def test_a_message_whose_decoding_is_interrupted_goes_back_to_its_place() -> None:
    with SageQueue[Any]() as q:
        Interrupted.left = 3
        q.put(Interrupted())
        q.put("after")
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                q.get(copy=False)
            assert q.qsize() == 2
        assert (q.get(copy=False) == 5).all()
        assert q.get() == "after"


@pytest.mark.parametrize("copy", [True, False], ids=["copies", "views"])
def test_a_queue_can_be_closed_while_other_threads_get_large_messages(copy: bool) -> None:
    for _ in range(30):
        q = SageQueue[Any](arena="16 MiB")
        stop = threading.Event()
        wrong: list[Any] = []

        def put() -> None:
            try:
                for number in range(10**6):
                    q.put([array(number, 400_000)])
            except sage_queue.QueueClosed:
                pass

        def get() -> None:
            try:
                while True:
                    (got,) = q.get(copy=copy)
                    if not (got == got[0]).all():
                        wrong.append(got)
            except sage_queue.QueueClosed:
                pass

        threads = [threading.Thread(target=put), threading.Thread(target=get), threading.Thread(target=get)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        q.close()
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong


# As the storms of test_batches.py; the program notes a message before it looks at it, so that an interruption there loses nothing.
VIEWER = """
import sys
import numpy  # before the storm: an import that is interrupted is lost
from helpers import Storm
from sage_queue import SageQueue, ShutDown

def body():
    append = seen.append
    while True:
        item = q.get(copy=False)
        append(item[1])
        if item[0][0] != item[1] % 251:
            wrong.append(item[1])

q, seen, wrong, done = SageQueue(sys.argv[1]), [], [], False
storm = Storm(body)
while not done:
    try:
        body()
    except KeyboardInterrupt:
        pass
    except ShutDown:
        done = True
print(storm.end(), seen == list(range(int(sys.argv[2]))) and not wrong)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="in CPython 3.10 a get can be interrupted at the moment of returning")
def test_a_storm_of_ctrl_c_loses_no_view_and_brings_none_twice(name: str, run_python: Run) -> None:
    count = 5000
    with SageQueue[Any](name, arena="16 MiB") as q:

        def put_all() -> None:
            for number in range(count):
                q.put((array(number, 100_000), number))
            q.shutdown()

        thread = threading.Thread(target=put_all)
        thread.start()
        hits, verdict = run_python(VIEWER, name, str(count), **WITH_HELPERS).stdout.split()
        thread.join()
        assert int(hits) > 20
        assert verdict == "True"
        assert q.get_stats()["gets"] == count
        assert held(q) == 0
