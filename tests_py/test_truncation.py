"""Somebody truncates a queue's file while it is in use: every call says so, and nobody is killed by it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import SOON, Run, finish, in_a_fork, sleepers, until

from sage_queue import Empty, QueueClosed, QueueCorrupt, SageQueue, destroy_queue, wait

ARENA = 1024 * 1024


@pytest.fixture
def q(name: str) -> Iterator[SageQueue[Any]]:
    queue: SageQueue[Any] = SageQueue(name, capacity="64 KiB", arena=ARENA)
    yield queue
    queue.close()
    destroy_queue(name)


def path_of(queue: SageQueue[Any]) -> str:
    path: str = queue.get_shared_memory_info()["shm_path"]
    return path


def cut(queue: SageQueue[Any], size: int = 0) -> None:
    os.truncate(path_of(queue), size)


def says_truncated() -> Any:
    return pytest.raises(QueueCorrupt, match="was truncated while it was in use")


def assert_lost(queue: SageQueue[Any]) -> None:
    """Each call says the same; only leaving works."""
    calls: list[Callable[[], Any]] = [
        lambda: queue.put(1),
        lambda: queue.put(b"x" * 100_000),
        lambda: queue.put_many([1, 2]),
        lambda: queue.get(timeout=0.01),
        lambda: queue.get_nowait(),
        lambda: queue.get(copy=False),
        lambda: queue.get_many(4),
        lambda: queue.lease(),
        lambda: queue.reserve(100),
        queue.qsize,
        queue.empty,
        queue.full,
        queue.get_stats,
        queue.task_done,
        queue.join,
        queue.fileno,
        queue.shutdown,
        lambda: wait([queue], 0.01),
    ]
    for call in calls:
        with says_truncated():
            call()
    assert "was truncated" in repr(queue)


# Where the file ends: nothing of it, half of the header, half a page of the participants, nearly all of it.
SIZES = [0, 4096, 8192 + 2048, None]


@pytest.mark.parametrize("size", SIZES)
def test_every_call_on_a_truncated_queue_says_so_and_it_can_be_made_anew(name: str, q: SageQueue[Any], size: int | None) -> None:
    q.put({"a": 1})
    q.put(b"x" * 100_000)
    cut(q, os.stat(path_of(q)).st_size - 1 if size is None else size)
    with says_truncated():
        while True:
            q.get(timeout=1)  # what is left of it may still be got
    assert_lost(q)
    q.close()
    with pytest.raises(QueueClosed):
        q.put(1)
    with pytest.raises(QueueCorrupt, match=r"(it was truncated to [0-9,]+ of [0-9,]+ bytes|is no queue but an empty file); remove it"):
        SageQueue(name)
    assert destroy_queue(name)
    with SageQueue[Any](name) as again:
        again.put(1)
        assert again.get() == 1


def test_a_truncated_queue_can_be_destroyed(q: SageQueue[Any]) -> None:
    cut(q)
    with says_truncated():
        q.put(1)
    q.destroy()
    assert not os.path.exists(path_of(q))


@pytest.mark.parametrize("size", [0, -1])
def test_a_get_that_sleeps_ends(q: SageQueue[Any], size: int) -> None:
    errors: list[BaseException] = []

    def sleep() -> None:
        try:
            q.get()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    until(lambda: sleepers(q))
    cut(q, os.stat(path_of(q)).st_size - 1 if size else 0)
    thread.join(SOON)
    assert [type(error) for error in errors] == [QueueCorrupt]


def test_a_coroutine_that_waits_ends(q: SageQueue[Any]) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(q.get_async())
        await asyncio.sleep(0.05)
        assert not task.done()
        cut(q)
        with says_truncated():
            await asyncio.wait_for(task, SOON)

    asyncio.run(main())


def _get_until_truncated(queue: SageQueue[Any], started: Any) -> None:
    started.set()
    with says_truncated():
        while True:
            queue.get()


def cut_under_three(q: SageQueue[Any], context: Any, target: Any) -> None:
    """Three processes, each of which says when it has begun."""
    started = [context.Event() for _ in range(3)]
    workers = [context.Process(target=target, args=(q, event)) for event in started]
    for worker in workers:
        worker.start()
    for event in started:
        assert event.wait(SOON)
    cut(q)
    finish(*workers)


def test_processes_that_sleep_in_it_end_in_order(q: SageQueue[Any], context: Any) -> None:
    cut_under_three(q, context, _get_until_truncated)


def test_a_forked_child_is_told_too(q: SageQueue[Any]) -> None:
    q.put(1)
    cut(q)

    def use() -> None:
        with says_truncated():
            q.get_nowait()

    in_a_fork(use)
    use()
    in_a_fork(use)


def test_of_two_queues_only_the_truncated_one_is_lost(q: SageQueue[Any]) -> None:
    with SageQueue[Any]() as other:
        other.put([1])
        cut(q)
        with says_truncated():
            q.put(1)
        other.put(b"x" * 100_000)
        assert other.get() == [1]
        assert len(other.get()) == 100_000


# ---- what looks at the queue's memory ----


def _place(array: Any) -> int:
    """Where in the queue's file the array lies."""
    address = array.__array_interface__["data"][0]
    for line in open("/proc/self/maps"):
        addresses, _, offset = line.split()[:3]
        start, end = (int(number, 16) for number in addresses.split("-"))
        if start <= address < end:
            place: int = address - start + int(offset, 16)
            return place
    raise AssertionError("it lies nowhere")


def test_an_array_that_lies_in_the_queue_reads_zeros_where_it_is_missing(q: SageQueue[Any]) -> None:
    numpy = pytest.importorskip("numpy")
    q.put(numpy.full(50_000, 7, "u1"))
    q.put(numpy.full(50_000, 7, "u1"))
    near, far = sorted((q.get(copy=False), q.get(copy=False)), key=_place)
    cut(q, _place(far) + 25_000)
    assert far.tolist()[:25_000] == [7] * 25_000
    assert far.tolist()[-20_000:] == [0] * 20_000  # a page that is there in part reads zeros, too
    assert set(near.tolist()) == {7}
    with says_truncated():
        q.put(1)
        q.get(timeout=1)
    assert set(near.tolist()) == {7}
    q.close()
    assert set(near.tolist()) == {7}
    del near, far
    gc.collect()
    assert os.path.basename(path_of(q)) not in open("/proc/self/maps").read()


def test_a_lease_and_a_reservation_end_with_the_error(q: SageQueue[Any]) -> None:
    q.put(b"x" * 50_000)
    lease = q.lease(copy=False)
    with says_truncated(), q.reserve(50_000) as buffer:
        cut(q)
        assert bytes(lease.value) == bytes(50_000)
        buffer[:] = b"y" * 50_000
    with says_truncated():
        lease.ack()
    assert_lost(q)


class Truncating:
    """A serializer whose loads() looks at a message that is truncated meanwhile."""

    name = "truncating"
    queue: Any = None
    fails = False

    @staticmethod
    def dumps(item: bytes) -> bytes:
        return item

    @classmethod
    def loads(cls, buffer: Any) -> bytes:
        if cls.queue is not None:
            cut(cls.queue)
        content = bytes(buffer)
        if cls.fails and not any(content):
            raise ValueError("only zeros")
        return content


@pytest.mark.parametrize("fails", [False, True])
def test_a_message_that_is_truncated_while_it_is_decoded_is_not_got(name: str, fails: bool) -> None:
    queue: SageQueue[bytes] = SageQueue(name, serializer=Truncating, arena=ARENA)
    try:
        queue.put(b"x" * 50_000)
        Truncating.queue, Truncating.fails = queue, fails
        with says_truncated():
            queue.get(copy=False)
        with says_truncated():
            queue.put(b"x")
    finally:
        Truncating.queue = None
        queue.close()
        destroy_queue(name)


# ---- the handler for SIGBUS ----

USE = """
import faulthandler, mmap, os, signal, sys
def damage_and_use():
    import sage_queue
    with sage_queue.SageQueue(auto_cleanup=True) as q:
        q.put(1)
        os.truncate(q.get_shared_memory_info()["shm_path"], 0)
        try:
            q.get()
        except sage_queue.QueueCorrupt:
            print("survived", flush=True)
def touch_elsewhere():
    with open(sys.argv[1], "wb+") as file:
        file.truncate(4096)
        memory = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
    os.unlink(sys.argv[1])
    memory[0]
"""


def leftovers() -> list[str]:
    return [entry for entry in os.listdir(os.environ["SAGE_QUEUE_DIR"]) if entry.startswith("ringbuf.anonymous")]


@pytest.fixture
def other_file(tmp_path: Any) -> str:
    return str(tmp_path / "other")


def test_a_sigbus_elsewhere_ends_the_process_as_ever(run_python: Run, other_file: str) -> None:
    done = run_python(USE + "damage_and_use(); touch_elsewhere()", other_file, check=False, PYTHONFAULTHANDLER="")
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "survived\n")
    assert done.stderr == ""


def test_faulthandler_that_is_there_before_tells_of_a_sigbus_elsewhere(run_python: Run, other_file: str) -> None:
    code = USE + "faulthandler.enable(); damage_and_use(); touch_elsewhere()"
    done = run_python(code, other_file, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "survived\n")
    assert "Fatal Python error: Bus error" in done.stderr
    assert "touch_elsewhere" in done.stderr


def test_faulthandler_that_comes_later_stands_before_the_guard(run_python: Run, name: str) -> None:
    code = USE + "import sage_queue; sage_queue.SageQueue().close(); faulthandler.enable(); damage_and_use()"
    done = run_python(code, check=False, PYTHONFAULTHANDLER="")
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    assert "Fatal Python error: Bus error" in done.stderr
    _remove(leftovers())


def test_the_environment_can_forbid_the_handler(run_python: Run) -> None:
    done = run_python(USE + "damage_and_use()", check=False, SAGE_QUEUE_SIGBUS_GUARD="0", PYTHONFAULTHANDLER="")
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    _remove(leftovers())


def _remove(files: list[str]) -> None:
    """What a process that was killed has left, and is too damaged to be collected."""
    assert len(files) == 1
    os.unlink(os.path.join(os.environ["SAGE_QUEUE_DIR"], files[0]))


def test_importing_the_package_installs_no_handler(run_python: Run) -> None:
    code = """
import sage_queue
def caught():
    line = next(line for line in open("/proc/self/status") if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGBUS - 1) & 1)
import signal
assert not caught()
with sage_queue.SageQueue():
    assert caught()
"""
    run_python(code, PYTHONFAULTHANDLER="")


def test_a_queue_that_is_truncated_under_much_traffic_kills_nobody(q: SageQueue[Any], context: Any) -> None:
    cut_under_three(q, context, _shout)


def _shout(queue: SageQueue[Any], started: Any) -> None:
    sizes = [10, 1000, 50_000]
    with says_truncated():
        for turn in range(10**9):
            if turn == 100:
                started.set()
            queue.put(b"x" * sizes[turn % 3])
            try:
                queue.get_nowait()
            except Empty:  # another one was quicker
                pass
