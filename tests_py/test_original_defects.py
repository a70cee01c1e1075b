"""The defects of SAGE's first queue, one by one: what each did, and that it does not happen here.

Each docstring starts with the defect's number in the list that was made of that queue's history.  The defects that need a child
killed at a chosen instruction (11, 12) have their own suites, in C; here they are met with a plain kill.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, ShutDown

SOON = 60.0
Run = Callable[..., subprocess.CompletedProcess[str]]
fork: Any = multiprocessing.get_context("fork")


def finish(*processes: Any) -> None:
    for process in processes:
        process.join(SOON)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_several_writers_and_readers_never_overwrite_or_share_a_message() -> None:
    """1, 2: two writers overwrote each other, two readers took the same; and the tests were content with 80 %."""

    def write(writer: int) -> None:
        for number in range(3000):
            payload = os.urandom(number % 300)
            q.put((writer, number, payload, zlib.crc32(payload)))

    def read() -> None:
        seen = []
        while True:
            try:
                writer, number, payload, checksum = q.get()
            except ShutDown:
                break
            assert zlib.crc32(payload) == checksum
            seen.append((writer, number))
        results.put(seen)

    with SageQueue[Any](capacity="64 KiB") as q, SageQueue[Any](capacity="4 MiB") as results:
        writers = [fork.Process(target=write, args=(n,)) for n in range(3)]
        readers = [fork.Process(target=read) for _ in range(3)]
        for process in writers + readers:
            process.start()
        finish(*writers)
        q.shutdown()
        finish(*readers)
        seen = [results.get(timeout=SOON) for _ in readers]
    assert sorted(pair for part in seen for pair in part) == [(w, n) for w in range(3) for n in range(3000)]
    for part in seen:
        assert all([n for w, n in part if w == writer] == sorted(n for w, n in part if w == writer) for writer in range(3))


def test_a_waiting_get_sleeps(run_python: Run) -> None:
    """3: waiting was a loop of one-millisecond naps.  (How little CPU it takes is measured in benchmarks/.)"""
    code = """
import resource, threading, time
from sage_queue import SageQueue
q = SageQueue()
threading.Timer(2, q.put, (1,)).start()
before = resource.getrusage(resource.RUSAGE_SELF)
q.get()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_nvcsw - before.ru_nvcsw)
"""
    assert int(run_python(code).stdout) < 500  # times it went to sleep in two seconds; one a millisecond would be 2000


def test_a_timeout_does_not_care_about_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """4: timeouts were computed with time.time()."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with SageQueue[int]() as q:
        start = time.monotonic()
        with pytest.raises(queue.Empty):
            q.get(timeout=0.1)
        assert time.monotonic() - start >= 0.1


def test_a_message_that_cannot_fit_is_an_error_at_once_and_a_large_one_arrives_whole_and_in_order() -> None:
    """5, 18: an oversized put hung; more than 64 KiB was never delivered, or put behind younger messages."""
    with SageQueue[bytes](capacity="1 MiB", arena="1 MiB") as q:
        with pytest.raises(sage_queue.MessageTooLarge):
            q.put(b"x" * (1 << 20))  # and what stands before it
        for size in (64 << 10, (64 << 10) + 1, 200_000, 500_000):
            q.put(b"before")
            q.put(b"x" * size)
            q.put(b"after")
            assert [q.get(), q.get(), q.get()] == [b"before", b"x" * size, b"after"]


def test_every_handle_counts_the_same_and_full_means_full(name: str) -> None:
    """6: qsize() was the handle's own count, and full() was never true."""
    with SageQueue[int](name, 2, auto_cleanup=True) as q, SageQueue[int](name) as reader:
        q.put(1)
        q.put(2)
        assert (q.qsize(), reader.qsize()) == (2, 2)
        assert q.full() and reader.full()
        with pytest.raises(queue.Full):
            q.put_nowait(3)
        reader.get()
        assert (q.qsize(), reader.qsize()) == (1, 1)
        assert not q.full() and not q.empty()


def test_a_closed_queue_says_that_it_is_closed() -> None:
    """7: put hung and get said Empty."""
    q = SageQueue[int]()
    q.close()
    for call in (lambda: q.put(1), q.get):
        with pytest.raises(RuntimeError, match="^Queue is closed$"):
            call()


def test_nobody_ever_opens_half_a_queue(name: str) -> None:
    """8: whoever opened between creation and ftruncate died of SIGBUS."""

    def open_and_use(start: Any) -> None:
        start.wait()
        for _ in range(100):
            with SageQueue[int](name) as q:
                q.put(1)
                q.get()

    start = fork.Barrier(4)
    children = [fork.Process(target=open_and_use, args=(start,)) for _ in range(4)]
    for child in children:
        child.start()
    finish(*children)


@pytest.mark.parametrize("content", [b"", bytes(4096), b"RinBuBf1"], ids=["empty", "zero", "magic only"])
def test_a_leftover_that_is_no_queue_is_an_error_and_can_be_removed(name: str, queue_directory: pathlib.Path, content: bytes) -> None:
    """8: a leftover of no bytes, or of zeros, crashed every later open."""
    (queue_directory / f"ringbuf.{name}").write_bytes(content)
    with pytest.raises(sage_queue.QueueCorrupt):
        SageQueue(name)
    assert sage_queue.destroy_queue(name)
    with SageQueue[int](name) as q:
        q.put(1)
        assert q.get() == 1


def test_closing_in_every_order_crashes_nobody(name: str, run_python: Run) -> None:
    """9: the last close used memory that it had just unmapped."""
    code = """
import os, sys, sage_queue
from sage_queue import SageQueue
a, b = SageQueue(sys.argv[1]), SageQueue(sys.argv[1])
if os.fork() == 0:
    b.close(); a.close(); a.destroy(); os._exit(0)
os.wait()
a.put(1); a.destroy(); a.close(); a.destroy(); assert b.get() == 1; b.close(); b.close(); b.destroy()
sage_queue.destroy_queue(sys.argv[1])
"""
    run_python(code, name)


def test_closing_one_of_two_handles_takes_nothing_from_the_other(name: str, queue_directory: pathlib.Path) -> None:
    """10: opening did not count, so the first close removed the queue under the other's feet."""
    with SageQueue[int](name, auto_cleanup=True) as stays:
        SageQueue[int](name).close()
        assert len(list(queue_directory.iterdir())) == 1
        with SageQueue[int](name) as third:
            third.put(1)
        assert stays.get() == 1


def test_killed_processes_block_nobody_and_are_not_counted_for_ever() -> None:
    """10, 11, 12: a kill left counts that never fell, or a mutex that nobody could take."""
    with SageQueue[Any](capacity="64 KiB") as q:

        def use() -> None:
            while True:
                q.put(os.getpid())
                q.get_reference()
                q.get()

        for _ in range(10):
            child = fork.Process(target=use)
            child.start()
            time.sleep(0.02)
            child.kill()
            child.join(SOON)
        while True:
            try:
                q.get(timeout=0.5)
            except queue.Empty:
                break
        stats = q.get_stats()
        assert stats["ref_count"] == 1
        q.put("alive")
        assert q.get(timeout=SOON) == "alive"


def test_a_name_means_the_same_in_every_process(name: str, run_python: Run) -> None:
    """13, 14, 15: the pid was part of the name, pickling prefixed it again, and one version shared no memory at all."""
    with SageQueue[str](name, namespace="space") as q:
        run_python("import sys; from sage_queue import SageQueue; SageQueue(sys.argv[1], namespace='space').put('by name')", name)
        assert q.get(timeout=SOON) == "by name"
        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(q))))
        assert again.name == q.name == f"space/{name}"
        again.put("by pickle")
        again.close()
        assert q.get(timeout=SOON) == "by pickle"


def test_opening_an_unknown_queue_is_an_error_and_no_deadlock(name: str) -> None:
    """16: it took the same lock twice."""
    with pytest.raises(sage_queue.QueueNotFound):
        sage_queue.open_queue(name)


def test_a_get_that_waits_keeps_no_put_out() -> None:
    """17: get(timeout=...) waited without end, holding a lock that every put needed."""
    with SageQueue[int]() as q:
        with pytest.raises(queue.Empty):
            q.get_nowait()
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(q.get(timeout=SOON)))
        thread.start()
        time.sleep(0.05)
        q.put(1, timeout=SOON)
        thread.join(SOON)
        assert got == [1]


@pytest.mark.parametrize("maxsize", [1, 10, 1000, 30_000])
def test_maxsize_items_fit_whatever_was_asked_for(maxsize: int) -> None:
    """18: the segment was 64 KiB whatever maxsize said."""
    with SageQueue[int](maxsize=maxsize) as q:
        for number in range(maxsize):
            q.put_nowait(number)
        with pytest.raises(queue.Full):
            q.put_nowait(-1)
        assert [q.get_nowait() for _ in range(maxsize)] == list(range(maxsize))


def test_asking_for_statistics_changes_nothing() -> None:
    """19: it zeroed the handle, and the next get lost a message."""
    with SageQueue[int]() as q:
        q.put(1)
        assert q.get_stats() == q.get_stats()
        assert q.get() == 1


def test_a_second_run_does_not_find_the_first_ones_messages(name: str, run_python: Run) -> None:
    """20: nothing was ever removed."""
    code = """
import sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1], auto_cleanup=True)
assert q.empty()
for number in range(300): q.put(number)
"""
    run_python(code, name)
    run_python(code, name)
    assert sage_queue.list_queues() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_with_a_queue_ends_when_it_is_told_to(name: str, number: int) -> None:
    """21: the constructor installed handlers that swallowed SIGTERM and Ctrl-C."""
    code = "import sys; from sage_queue import SageQueue; q = SageQueue(sys.argv[1]); print(1, flush=True); q.get()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None and child.stdout.readline() == b"1\n"
    child.send_signal(number)
    assert child.wait(SOON) == -number
    child.stdout.close()
    sage_queue.collect_garbage()


def test_a_queue_can_be_made_in_any_thread() -> None:
    """21: signal.signal() works in the main thread only, and so did the queue."""
    errors: list[BaseException] = []

    def make() -> None:
        try:
            with SageQueue[int]() as q:
                q.put(1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert errors == []


def test_messages_outlive_the_process_that_put_them(name: str, run_python: Run) -> None:
    """22: whether close() keeps what is in the queue changed from version to version."""
    run_python("import sys; from sage_queue import SageQueue; SageQueue(sys.argv[1]).put('kept')", name)
    with SageQueue[str](name, mode="open") as q:
        assert q.get() == "kept"


def test_destroy_queue_destroys_the_queue_that_the_same_name_creates(name: str) -> None:
    """23: it did not know about namespaces, and did nothing."""
    for options in ({}, {"namespace": "space"}):
        with SageQueue[int](name, **options) as q:  # type: ignore[arg-type]
            q.put(1)
        assert sage_queue.destroy_queue(name, **options)
        assert sage_queue.list_queues() == []


def test_a_size_beyond_32_bits_is_that_size() -> None:
    """24: 3 GiB silently became 1024 bytes, and a negative size the default."""
    with SageQueue[int](capacity="3 GiB") as q:
        assert q.capacity == 4 << 30
        q.put(1)
        assert q.get() == 1
    with pytest.raises(ValueError):
        SageQueue(capacity=-1)


def test_negative_timeouts_and_all_of_queue_dot_queue() -> None:
    """25: "100 % compatible" accepted negative timeouts and had no task_done, join or shutdown."""
    with SageQueue[int]() as q:
        with pytest.raises(ValueError):
            q.get(timeout=-1)
        q.put(1)
        q.get()
        q.task_done()
        q.join()
        q.shutdown()


class Explodes:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("boom")


def test_an_item_that_cannot_be_unpickled_is_not_swallowed() -> None:
    """26: the error was dropped, and the item with it, and get went on waiting."""
    with SageQueue[Any]() as q:
        q.put(Explodes())
        with pytest.raises(ValueError, match="boom"):
            q.get(timeout=1)
        with pytest.raises(queue.Empty):
            q.get_nowait()


def test_nothing_is_ever_printed(run_python: Run) -> None:
    """27: the constructor and the loader told their story on stdout."""
    code = """
import pickle
from sage_queue import SageQueue, Empty
with SageQueue(maxsize=3) as q:
    for item in range(3): q.put(item)
    pickle.loads(pickle.dumps(q)).close()
    q.get_stats(); q.get_reference().to_json(); q.get(); q.full()
    try: q.get(timeout=0); q.get(timeout=0); q.get(timeout=0)
    except Empty: pass
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_compiles_nothing(run_python: Run) -> None:
    """28: the first import called a compiler."""
    code = "import os, subprocess; os.system = subprocess.Popen = None; import sage_queue; sage_queue.SageQueue().put(1)"
    run_python(code, PATH="")


def test_a_queue_takes_memory_only_as_it_is_used(name: str, queue_directory: pathlib.Path) -> None:
    """29: a Docker container's 64 MiB were not enough for a queue that nobody used."""
    with SageQueue[bytes](name, capacity="1 GiB") as q:
        q.put(b"x" * 1000)
        used = (queue_directory / f"ringbuf.{name}").stat().st_blocks * 512
        assert used < 4 << 20
        q.get()


def test_the_first_queues_probe_works(name: str) -> None:
    """30: SAGE tried a backend out like this, with ten items, and silently took another one when it failed."""
    q = SageQueue(name="test_backend_check", maxsize=10)
    q.put("test")
    assert q.get() == "test"
    q.logger = None  # type: ignore[attr-defined]  # SAGE's tasks do this
    assert not (not q)
    q.close()


def test_file_descriptors_and_memory_come_back(name: str) -> None:
    """19, 20: what is opened is closed again, however often."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(200):
        with SageQueue[int](name) as q, pickle.loads(pickle.dumps(q)) as other:
            q.put(1)
            other.get()
    assert descriptors() == before


def test_running_out_of_file_descriptors_is_an_error_that_says_so(name: str) -> None:
    """29: what runs out is named."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    queues = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, hard))
        with pytest.raises(sage_queue.QueueNoFiles, match="out of file descriptors"):
            while True:
                queues.append(SageQueue[int]())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for q in queues:
            q.close()
