"""What a queue costs in memory: capacity and arena bound it, and what is in it at once is what it takes."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable

import pytest

import sage_queue
from sage_queue import SageQueue

KIB = 1024
LIGHT = 64 * KIB  # header, participants, and 256 cells with their slots

needs_a_mount = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")


def bytes_of(q: "SageQueue[bytes]") -> int:
    """What the queue's file has in memory."""
    return os.stat(str(q.get_shared_memory_info()["shm_path"])).st_blocks * 512


def free_bytes(directory: pathlib.Path) -> int:
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize


@needs_a_mount
def test_a_queue_for_each_of_500_clients_fits_in_64_mib(name: str, small_tmpfs: Callable[[str], pathlib.Path]) -> None:
    """Each with a message at a time, and some of them with several laps of their rings."""
    directory = small_tmpfs("64m")
    with contextlib.ExitStack() as stack:
        queues = [stack.enter_context(SageQueue[bytes](f"{name}-{client}", capacity="64 KiB")) for client in range(500)]
        for turn in range(20):
            for client, q in enumerate(queues):
                q.put(b"%d %d" % (client, turn))
                assert q.get() == b"%d %d" % (client, turn)
        for q in queues[::10]:
            for _ in range(600):
                q.put(b"a" * 1000)
                assert q.get() == b"a" * 1000
        assert max(bytes_of(q) for q in queues) <= LIGHT
        assert free_bytes(directory) > 64 * KIB * KIB - 500 * LIGHT


@needs_a_mount
def test_so_do_500_with_the_default_capacity(name: str, small_tmpfs: Callable[[str], pathlib.Path]) -> None:
    small_tmpfs("64m")
    with contextlib.ExitStack() as stack:
        queues = [stack.enter_context(SageQueue[bytes](f"{name}-{client}")) for client in range(500)]
        for q in queues:
            for answer in range(300):
                q.put(b"%d" % answer * 20)
                assert q.get() == b"%d" % answer * 20
        assert max(bytes_of(q) for q in queues) <= LIGHT


def test_what_goes_through_a_queue_one_at_a_time_costs_little_whatever_its_capacity(name: str) -> None:
    for capacity, most in (("64 KiB", LIGHT), ("4 MiB", LIGHT), ("64 MiB", 16 * LIGHT)):
        with SageQueue[bytes](f"{name}-{capacity[:2].strip()}", capacity=capacity) as q:
            for _ in range(80_000):  # 80 MB
                q.put(b"x" * 1000)
                q.get()
            assert bytes_of(q) <= most


def test_a_burst_takes_the_memory_that_it_needs_and_what_comes_after_it_no_more(name: str) -> None:
    with SageQueue[bytes](name, capacity="4 MiB") as q:
        for _ in range(1000):
            q.put(b"x" * 1000)
        burst = bytes_of(q)
        assert 1000 * 1000 < burst < 4 * 1000 * 1000  # of 6 MiB: cells, slots beside them, and the last step
        for _ in range(1000):
            q.get()
        for _ in range(20_000):
            q.put(b"x" * 1000)
            q.get()
        assert bytes_of(q) == burst


@needs_a_mount
def test_on_a_full_file_system_a_queue_goes_on_in_the_memory_it_has(name: str, small_tmpfs: Callable[[str], pathlib.Path]) -> None:
    directory = small_tmpfs("1m")
    hog = directory / "hog"
    with SageQueue[bytes](name, capacity="4 MiB", arena=0) as q:
        q.put(b"x" * 1000)
        q.get()
        with contextlib.suppress(OSError), open(hog, "wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass
        before = bytes_of(q)
        for number in range(3000):
            q.put(b"%d" % number * 100, timeout=0)
            assert q.get() == b"%d" % number * 100
        with pytest.raises((sage_queue.QueueNoSpace, sage_queue.Full)):
            for number in range(100):
                q.put(b"x" * 1000, timeout=0)
        while not q.empty():
            q.get()
        q.put(b"the next", timeout=0)
        assert q.get() == b"the next"
        assert bytes_of(q) == before
    hog.unlink()
