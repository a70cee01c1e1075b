"""Messages of any size up to the arena's: right, or a clear error."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SOON, clean

import sage_queue
from sage_queue import Full, MessageTooLarge, SageQueue

KIB = 1024


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 1024 * KIB - 1, 1024 * KIB], ids=str)
@pytest.mark.parametrize("copy", [True, False], ids=["copy", "views"])
def test_a_message_of_any_size_up_to_the_arenas_comes_out_whole_between_others(size: int, copy: bool) -> None:
    with SageQueue[Any](arena="1 MiB", serializer="raw") as q:
        assert q.arena == 1024 * KIB
        for _ in range(3):
            q.put(b"before")
            q.put(content(size))
            q.put(b"after")
            assert [bytes(q.get(copy=copy)) for _ in range(3)] == [b"before", content(size), b"after"]
        assert clean(q)


def test_a_message_of_one_byte_more_than_the_arena_is_refused_at_once_with_both_sizes() -> None:
    with SageQueue[Any](arena="1 MiB", serializer="raw") as q:
        text = f"the message is {q.arena + 1} bytes, and the largest that .* can ever hold is {q.arena} bytes; create it with a larger arena"
        with pytest.raises(MessageTooLarge, match=text):
            q.put(content(q.arena + 1))
        assert q.empty() and clean(q)
    with SageQueue[Any](arena="1 MiB") as q:  # with what stands before it
        q.put(content(q.arena - 64))
        assert q.get() == content(q.arena - 64)
        with pytest.raises(MessageTooLarge, match=f"the message is {q.arena + 1} bytes"):
            q.put(content(q.arena - 63))


@pytest.mark.parametrize("arena", [0, "0", "0 MiB"], ids=str)
def test_without_an_arena_a_message_may_be_half_of_the_capacity(arena: Any) -> None:
    with SageQueue[Any](capacity="1 MiB", arena=arena, serializer="raw") as q:
        assert q.arena == q.get_reference().arena == 0
        q.put(content(512 * KIB))
        assert q.get(copy=False) == content(512 * KIB)
        with pytest.raises(MessageTooLarge, match=f"{512 * KIB + 1} bytes, .* {512 * KIB} bytes; create it with an arena, or a larger capacity"):
            q.put(content(512 * KIB + 1))
        q.put(b"x")
        with q.lease() as message:
            assert message.value == b"x"


@pytest.mark.parametrize("arena", [-1, (64 << 30) + 1, "65 GiB"], ids=str)
def test_an_arena_out_of_range_is_a_value_error(arena: Any) -> None:
    with pytest.raises(ValueError, match="arena=.* must be between 0 bytes and 64 GiB"):
        SageQueue(arena=arena)


def test_a_full_arena_is_full_and_says_so_while_small_messages_pass() -> None:
    with SageQueue[Any](arena="1 MiB", serializer="raw") as q:
        q.put(content(700 * KIB))
        full = rf"^Queue is full: no run of {500 * KIB} bytes free in the arena of {q.arena} bytes \({700 * KIB} in use\)$"
        for call in (lambda: q.put_nowait(content(500 * KIB)), lambda: q.put(content(500 * KIB), timeout=0.05)):
            with pytest.raises(Full, match=full):
                call()
        q.put(b"small")
        assert q.qsize() == 2
        timer = threading.Timer(0.1, q.get)
        timer.start()
        q.put(content(500 * KIB), timeout=SOON)
        timer.join()
        assert [q.get(), q.get()] == [b"small", content(500 * KIB)]
        assert clean(q)


def test_a_full_ring_is_full_for_large_messages_too_and_one_waits_for_room() -> None:
    with SageQueue[Any](maxsize=1, serializer="raw") as q:
        q.put(b"first")
        with pytest.raises(Full, match="^Queue is full$"):
            q.put_nowait(content(1024 * KIB))
        with pytest.raises(Full, match="^Put operation timed out$"):
            q.put(content(1024 * KIB), timeout=0.25)
        assert q.get_stats()["arena_used_bytes"] == 0
        timer = threading.Timer(0.3, q.get)
        timer.start()
        q.put(content(1024 * KIB))
        timer.join()
        assert q.get() == content(1024 * KIB)
        assert clean(q)


def test_a_large_put_that_waits_ends_with_shutdown_close_or_ctrl_c_and_puts_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for end in ("ctrl-c", "shutdown", "close"):
            for options in ({"maxsize": 1}, {"arena": "1 MiB"}):
                q = SageQueue[Any](serializer="raw", **options)  # type: ignore[arg-type]
                q.put(content(600 * KIB))
                call: Any = {"ctrl-c": lambda: os.kill(os.getpid(), signal.SIGINT), "shutdown": q.shutdown, "close": q.close}[end]
                error = {"ctrl-c": KeyboardInterrupt, "shutdown": sage_queue.ShutDown, "close": sage_queue.QueueClosed}[end]
                timer = threading.Timer(0.15, call)
                timer.start()
                with pytest.raises(error):
                    q.put(content(700 * KIB))
                timer.join()
                if end != "close":
                    assert q.qsize() == 1
                    assert q.get() == content(600 * KIB)
                    assert clean(q)
                    q.close()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_object_of_a_thousand_buffers_and_one_that_is_too_large_by_its_padding() -> None:
    numpy = pytest.importorskip("numpy")
    with SageQueue[Any](arena="4 MiB") as q:
        arrays = [numpy.full(2000 + n, n % 251, "u1") for n in range(1000)]
        q.put(arrays)
        assert all((got == array).all() for got, array in zip(q.get(), arrays))
        with pytest.raises(MessageTooLarge):
            q.put([numpy.zeros(4 * KIB + 1, "u1") for _ in range(1023)])
        assert clean(q)


def test_messages_of_mixed_sizes_from_many_threads_arrive_once_and_whole() -> None:
    import random

    with SageQueue[Any](capacity="256 KiB", arena="4 MiB") as q:
        seen: list[tuple[int, int]] = []

        def put(thread: int) -> None:
            chance = random.Random(thread)
            for number in range(150):
                q.put((thread, number, content(chance.choice([10, 3_000, 20_000, 100_000, 900_000]))), timeout=SOON)

        def get() -> None:
            while True:
                try:
                    thread, number, what = q.get(timeout=SOON)
                except sage_queue.ShutDown:
                    return
                assert what == content(len(what))
                seen.append((thread, number))

        putters = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
        getters = [threading.Thread(target=get) for _ in range(3)]
        for thread in putters + getters:
            thread.start()
        for thread in putters:
            thread.join()
        q.shutdown()
        for thread in getters:
            thread.join()
        assert sorted(seen) == [(thread, number) for thread in range(4) for number in range(150)]
        assert clean(q)


def test_other_threads_run_while_a_large_message_is_copied() -> None:
    numpy = pytest.importorskip("numpy")
    with SageQueue[Any](arena="1 GiB") as q:
        large = numpy.zeros(256 << 20, "u1")
        turns = 0
        stop = threading.Event()

        def turn() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1
                time.sleep(0.0001)

        thread = threading.Thread(target=turn)
        thread.start()
        before = turns
        q.put(large)
        during_put = turns - before
        before = turns
        got = q.get()
        during_get = turns - before
        stop.set()
        thread.join()
        assert got.nbytes == large.nbytes
        assert during_put > 20 and during_get > 20


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_an_arena_larger_than_the_file_system_ends_in_a_clear_error_and_the_queue_goes_on(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    """As in a container with the usual /dev/shm of 64 MiB."""
    directory = small_tmpfs("64m")
    with SageQueue[bytes](name, arena="256 MiB", serializer="raw") as q:
        put = 0
        text = f"no room left in {directory} for the 8 MiB .* are free; .* smaller capacity or arena"
        with pytest.raises(sage_queue.QueueNoSpace, match=text) as caught:
            for put in range(32):
                q.put(put.to_bytes(4, "little") + content(8 << 20)[4:], timeout=0)
        assert caught.value.errno == errno.ENOSPC
        assert 4 < put < 8
        with pytest.raises(sage_queue.QueueNoSpace):
            q.reserve(8 << 20, timeout=0.3)  # more than a slice of the wait
        with pytest.raises(OSError):
            q.put(content(8 << 20), timeout=0.05)
        with pytest.raises(OSError):
            q.put_many([content(8 << 20)], timeout=0.3)
        q.put(b"small")
        for number in range(put):
            got = q.get(copy=number % 2 == 0)
            assert int.from_bytes(got[:4], "little") == number and got[4:] == content(8 << 20)[4:]
            del got
        assert q.get() == b"small"
        for _ in range(3):
            q.put(content(8 << 20))
            assert q.get() == content(8 << 20)
        assert clean(q)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
@pytest.mark.parametrize("way", ["put", "put_many", "reserve"])
def test_a_put_that_finds_no_pages_waits_until_a_get_has_freed_some(name: str, small_tmpfs: Callable[[str], pathlib.Path], way: str) -> None:
    small_tmpfs("16m")
    with SageQueue[bytes](name, arena="64 MiB", serializer="raw") as q:
        put = 0
        with pytest.raises(sage_queue.QueueNoSpace):
            for put in range(16):
                q.put_nowait(content(2 << 20))
        timer = threading.Timer(0.3, q.get)  # by then, the wait has been cut into slices
        timer.start()
        if way == "put":
            q.put(content(2 << 20))
        elif way == "put_many":
            q.put_many([content(1 << 20), b"small", content(900 * KIB)])
        else:
            with q.reserve(2 << 20) as buffer:
                buffer[:] = content(2 << 20)
        timer.join()
        for _ in range(put - 1):
            assert q.get() == content(2 << 20)
        if way == "put_many":
            assert [q.get(), q.get(), q.get()] == [content(1 << 20), b"small", content(900 * KIB)]
        else:
            assert q.get() == content(2 << 20)
        assert clean(q)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_where_nothing_will_free_pages_a_put_says_so_however_long_it_may_wait(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    directory = small_tmpfs("2m")
    with SageQueue[bytes](name, capacity="64 KiB", arena="16 MiB", serializer="raw") as q:
        with pytest.raises(OSError), open(directory / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(sage_queue.QueueNoSpace):
            q.put(content(1 << 20))
        with pytest.raises(sage_queue.QueueNoSpace):
            asyncio.run(q.put_async(content(1 << 20)))
    (directory / "filler").unlink()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_coroutine_that_finds_no_pages_waits_too_and_says_at_its_deadline_that_there_were_none(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    small_tmpfs("16m")

    async def work(q: SageQueue[bytes]) -> None:
        with pytest.raises(sage_queue.QueueNoSpace):
            await q.put_async(content(2 << 20), timeout=0.3)
        waiting = asyncio.ensure_future(q.put_async(content(2 << 20)))
        await asyncio.sleep(0.3)
        await q.get_async()
        await waiting

    with SageQueue[bytes](name, arena="64 MiB", serializer="raw") as q:
        with pytest.raises(sage_queue.QueueNoSpace):
            for _ in range(16):
                q.put_nowait(content(2 << 20))
        asyncio.run(work(q))
        while not q.empty():
            assert q.get() == content(2 << 20)
        assert clean(q)
    gc.collect()  # what the closed loop had of the queue


FRAMES = 80


def _halve(frames: SageQueue[Any], halves: SageQueue[Any]) -> None:
    for frame in frames:
        halves.put(frame[: len(frame) // 4])
    halves.shutdown()


def _count(halves: SageQueue[Any], seen: SageQueue[int]) -> None:
    count = 0
    for _ in halves:
        count += 1
        time.sleep(0.005)
    seen.put(count)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_pipeline_of_default_queues_in_a_container_has_its_producers_wait_and_loses_no_frame(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    """As in a container with the usual /dev/shm of 64 MiB, or less: three stages with two queues between them, and the last is the slowest."""
    for size, options in (("64m", {}), ("24m", {"arena": "64 MiB"})):
        small_tmpfs(size)
        context = multiprocessing.get_context("fork")
        with SageQueue[Any](f"{name}-1", **options) as frames, SageQueue[Any](f"{name}-2", **options) as halves, SageQueue[int]() as seen:
            stages = [context.Process(target=_halve, args=(frames, halves)), context.Process(target=_count, args=(halves, seen))]
            for stage in stages:
                stage.start()
            for _ in range(FRAMES):
                frames.put(content(6 << 20))
            frames.shutdown()
            assert seen.get(timeout=SOON) == FRAMES
            for stage in stages:
                stage.join()
                assert stage.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_the_default_arena_is_a_quarter_of_a_small_file_system_and_64_mib_of_a_large_one(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    for size, arena in (("64m", 16), ("1g", 64)):
        small_tmpfs(size)
        with SageQueue[Any](name) as q:
            assert q.arena == q.get_reference().arena == arena << 20
        with sage_queue.SageQueueRef(f"{name}-by-name").get_queue() as q:
            assert q.arena == arena << 20
        with SageQueue[Any](f"{name}-said", arena="64 MiB") as q:
            assert q.arena == 64 << 20


def _flags(path: str) -> list[set[str]]:
    """What the system says of each mapping of the file."""
    inode, found, ours = str(os.stat(path).st_ino), [], False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("VmFlags:") and ours:
            found.append(set(line.split()[1:]))
        elif not line[0].isupper():
            ours = line.split()[4] == inode and os.path.dirname(path) in line
    return found


def test_wishes_for_the_memory_hold_for_the_handle_that_has_them(name: str) -> None:
    wishes: dict[str, Any] = {"prefault": True, "huge_pages": True, "dump": True}
    with SageQueue[Any](name, capacity="64 KiB", arena="1 MiB", **wishes) as q:
        path = q.get_shared_memory_info()["shm_path"]
        assert q.get_stats()["arena_backed_bytes"] == 1024 * KIB
        assert _flags(path) and all("dd" not in flags for flags in _flags(path))
    with SageQueue[Any](name, capacity="64 KiB", arena="1 MiB") as q:
        assert q.get_stats()["arena_backed_bytes"] == 0
        assert _flags(path) and all("dd" in flags and "lo" not in flags for flags in _flags(path))
        with SageQueue[Any](name, mode="open", prefault=True) as again:
            assert again.get_stats()["arena_backed_bytes"] == 1024 * KIB


LOCKED = """
import resource
from sage_queue import QueueNoMemory, _native
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
error = _native.error_of(_native.lib.RINGBUF_E_NO_MEMORY, name="q")  # what comes of it beyond the limit, tests_c/test_turn.c shows
assert isinstance(error, QueueNoMemory) and "RLIMIT_MEMLOCK" in str(error) and "1 MiB" in str(error), error
"""


def test_the_error_for_more_than_may_be_locked_names_the_limit() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_lease_on_a_full_file_system_works_from_where_the_message_is(name: str, small_tmpfs: Callable[[str], pathlib.Path]) -> None:
    directory = small_tmpfs("4m")
    with SageQueue[bytes](name, capacity="64 KiB", arena="16 MiB", serializer="raw") as q:
        q.put(b"job")
        filler = directory / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with q.lease() as message:
            assert (message.value, message.attempts) == (b"job", 1)
        assert q.empty()
        filler.unlink()
