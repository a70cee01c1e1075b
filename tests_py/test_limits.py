"""What is said of a queue that its surroundings cannot hold: warnings when it is made, and errors when there is no room."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from helpers import Run
from sage_queue import QueueNoSpace, SageQueue, _surroundings

needs_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")

MIB = 1 << 20


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """What sets the limit that this process takes for its cgroup's."""

    def set_limit(value: int | None) -> None:
        known = (os.getpid(), value, "/sys/fs/cgroup/memory.max" if value else "")
        monkeypatch.setattr(_surroundings, "_known", known)

    set_limit(None)
    return set_limit


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """What sets how many bytes the queues' file system is taken to hold."""

    def set_bytes(value: int | None) -> None:
        monkeypatch.setattr(_surroundings, "file_system_bytes", lambda directory: value)

    set_bytes(None)
    return set_bytes


def said(make: Callable[[], SageQueue[Any]]) -> list[str]:
    """The warnings that come with a queue, which must work nevertheless."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with make() as q:
            q.put("works")
            assert q.get() == "works"
    assert all(each.category is RuntimeWarning and each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


# ---- warnings ----


def test_sizes_beyond_the_file_system_are_warned_of_with_both_numbers_and_what_helps(limit: Any, holds: Any) -> None:
    holds(64 * MIB)
    (text,) = said(lambda: SageQueue(arena="128 MiB"))
    assert "capacity=4 MiB and arena=128 MiB" in text and "can hold 64 MiB" in text
    for remedy in ("--shm-size", "emptyDir: {medium: Memory}", "smaller sizes", "SAGE_QUEUE_DIR"):
        assert remedy in text
    (text,) = said(lambda: SageQueue(capacity="128 MiB"))
    assert "with capacity=128 MiB cannot" in text
    (text,) = said(lambda: SageQueue(capacity="32 MiB", arena=33 * MIB))
    assert "capacity=32 MiB and arena=33 MiB" in text
    assert said(lambda: SageQueue(capacity="32 MiB", arena="32 MiB")) == []


def test_the_default_sizes_are_never_warned_of(limit: Any, holds: Any) -> None:
    holds(MIB)
    limit(MIB)
    assert said(SageQueue) == []
    assert said(lambda: SageQueue(maxsize=3, serializer="pickle")) == []


def test_an_arena_beyond_the_cgroups_limit_is_warned_of_with_both_numbers_and_what_helps(limit: Any, holds: Any) -> None:
    limit(100 * MIB)
    (text,) = said(lambda: SageQueue(arena="128 MiB"))
    for part in ("arena=128 MiB", "100 MiB (/sys/fs/cgroup/memory.max)", "OOM killer", "docker run --memory", "resources.limits.memory"):
        assert part in text
    assert said(lambda: SageQueue(arena="64 MiB")) == []
    holds(64 * MIB)
    assert len(said(lambda: SageQueue(arena="128 MiB"))) == 2


def test_only_who_makes_a_queue_is_warned_and_of_the_sizes_that_it_has(limit: Any, holds: Any, name: str) -> None:
    holds(64 * MIB)
    with SageQueue[int](name, arena="1 MiB"):
        assert said(lambda: SageQueue(name, arena="128 MiB")) == []  # it has the sizes of the one that is there
        assert said(lambda: SageQueue(name, mode="open")) == []
        assert said(lambda: sage_queue.open_queue(name)) == []


def test_where_warnings_are_errors_no_queue_is_left(limit: Any, holds: Any, queue_directory: pathlib.Path) -> None:
    holds(64 * MIB)
    before = os.listdir(queue_directory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="cannot be filled") as caught:
            SageQueue(arena="128 MiB")
        assert sorted(os.listdir(queue_directory)) == sorted(before)  # also while somebody keeps the exception
    assert caught.value.__traceback__ is not None


def test_a_warning_comes_once_for_each_place_as_pythons_own_filters_have_it(run_python: Run) -> None:
    code = """
from sage_queue import SageQueue, _surroundings
_surroundings.file_system_bytes = lambda directory: 1 << 20
for _ in range(5):
    SageQueue(arena="8 MiB").close()
"""
    done = run_python(code)
    assert done.stderr.count("RuntimeWarning: a queue with") == 1


@needs_root
def test_a_small_tmpfs_is_noticed(small_tmpfs: Callable[[str], pathlib.Path], limit: Any) -> None:
    directory = small_tmpfs("64m")
    (text,) = said(lambda: SageQueue(arena="64 MiB"))
    assert f"{directory} can hold 64 MiB" in text
    assert said(lambda: SageQueue(arena="32 MiB")) == []
    assert said(SageQueue) == []


@needs_root
def test_a_tmpfs_without_a_bound_is_none(small_tmpfs: Callable[[str], pathlib.Path], limit: Any) -> None:
    directory = small_tmpfs("0")
    assert _surroundings.file_system_bytes(str(directory)) is None
    assert said(lambda: SageQueue(arena="1 GiB")) == []
    assert _surroundings.file_system_bytes(str(directory / "nowhere")) is None


# ---- cgroups, laid out as files ----

HYBRID = "30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n36 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNIFIED = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

#: name: (/proc/self/cgroup, /proc/self/mountinfo, the limits, what is found and where)
LAYOUTS: dict[str, tuple[str, str, dict[str, str], tuple[int | None, str]]] = {
    "version 2, the limit of our own": (
        "0::/user.slice/a.scope\n",
        UNIFIED,
        {"user.slice/a.scope/memory.max": "1000\n", "user.slice/memory.max": "max\n"},
        (1000, "/sys/fs/cgroup/user.slice/a.scope/memory.max"),
    ),
    "version 2, one above is lower": (
        "0::/kubepods/pod1/box\n",
        UNIFIED,
        {"kubepods/pod1/box/memory.max": "5000", "kubepods/pod1/memory.max": "3000", "kubepods/memory.max": "9000"},
        (3000, "/sys/fs/cgroup/kubepods/pod1/memory.max"),
    ),
    "version 2, in a container with a cgroup namespace": (
        "0::/\n",
        UNIFIED,
        {"memory.max": "700"},
        (700, "/sys/fs/cgroup/memory.max"),
    ),
    "version 2, no limit": ("0::/a\n", UNIFIED, {"a/memory.max": "max\n"}, (None, "")),
    "version 2, the root has no such file": ("0::/\n", UNIFIED, {}, (None, "")),
    "version 2, a path that means something outside only": ("0::/../../other\n", UNIFIED, {"memory.max": "800"}, (800, "/sys/fs/cgroup/memory.max")),
    "version 1": (
        "9:memory:/docker/abc\n8:cpu,cpuacct:/docker/abc\n",
        "36 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        {"memory/docker/abc/memory.limit_in_bytes": "600\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
        (600, "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"),
    ),
    "version 1, where what is mounted is our cgroup itself": (
        "9:memory:/docker/abc\n",
        "36 1 0:32 /docker/abc /sys/fs/cgroup/memory ro master:17 - cgroup cgroup rw,memory\n",
        {"memory/memory.limit_in_bytes": "650"},
        (650, "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ),
    "both, and the memory is of version 1": (
        "9:memory:/a\n0::/b\n",
        HYBRID,
        {"memory/a/memory.limit_in_bytes": "500", "unified/b/cgroup.procs": ""},
        (500, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes"),
    ),
    "controllers mounted together": (
        "4:cpu,memory:/a\n",
        "36 1 0:32 / /sys/fs/cgroup/both rw - cgroup cgroup rw,cpu,memory\n40 1 0:33 / /sys/fs/cgroup/io rw - cgroup cgroup rw,blkio\n",
        {"both/a/memory.limit_in_bytes": "400", "io/a/memory.limit_in_bytes": "1"},
        (400, "/sys/fs/cgroup/both/a/memory.limit_in_bytes"),
    ),
    "a mount point with a space": (
        "0::/a:b\n",
        UNIFIED.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/my\040own"),
        {"my own/a:b/memory.max": "300"},
        (300, "/sys/fs/cgroup/my own/a:b/memory.max"),
    ),
    "no cgroups at all": ("", "22 1 0:21 / /proc rw - proc proc rw\n", {}, (None, "")),
    "lines that make no sense": ("0::/a\n", "x\n- \n1 2 - cgroup2\n\n", {}, (None, "")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_least_limit_of_our_cgroup_and_those_above_is_found(tmp_path: pathlib.Path, layout: str) -> None:
    ours, mounts, limits, expected = LAYOUTS[layout]
    files = {"proc/self/cgroup": ours, "proc/self/mountinfo": mounts, **{f"sys/fs/cgroup/{file}": text for file, text in limits.items()}}
    for file, text in files.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _surroundings.memory_limit(str(tmp_path)) == expected


def test_without_proc_there_is_no_limit(tmp_path: pathlib.Path) -> None:
    assert _surroundings.memory_limit(str(tmp_path)) == (None, "")


def test_the_limit_of_this_process_is_read_and_is_that_of_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    found, where = _surroundings.memory_limit()
    assert found is None or (found > 0 and where.startswith("/"))
    reads: list[int] = []
    monkeypatch.setattr(_surroundings, "memory_limit", lambda: reads.append(os.getpid()) or (5, "there"))
    monkeypatch.setattr(_surroundings, "_known", (os.getpid() + 1, 7, "elsewhere"))  # as a child finds it
    assert _surroundings._limit_of_this_process() == _surroundings._limit_of_this_process() == (5, "there")
    assert reads == [os.getpid()]


# ---- no room ----

REMEDIES = ("`sage-queue gc`", "docker run --shm-size=1g", "emptyDir: {medium: Memory}", "smaller capacity or arena", "SAGE_QUEUE_DIR")


@pytest.fixture
def full_tmpfs(small_tmpfs: Callable[[str], pathlib.Path]) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A directory with 8 KiB free, and the file that takes the rest."""
    directory = small_tmpfs("1m")
    filler = directory / "filler"

    yield directory, filler
    filler.unlink(missing_ok=True)


def fill_up(filler: pathlib.Path, leave: int) -> None:
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    with filler.open("r+b") as file:
        file.truncate(os.stat(filler).st_size - leave)


def no_space(call: Callable[[], object], needed: str) -> None:
    with pytest.raises(QueueNoSpace) as caught:
        call()
    text = str(caught.value)
    assert re.search(needed, text), text
    assert "of 1 MiB are free" in text, text
    for remedy in REMEDIES:
        assert remedy in text, text


@needs_root
def test_no_room_names_what_was_asked_for_what_is_free_and_what_helps(full_tmpfs: tuple[pathlib.Path, pathlib.Path], name: str) -> None:
    directory, filler = full_tmpfs
    page = os.sysconf("SC_PAGE_SIZE")
    with SageQueue[bytes](name, capacity="64 KiB", arena="512 KiB", serializer="raw") as q:
        q.put(b"small")
        fill_up(filler, 2 * page)
        queue = rf"queue .{name}. needs: [0-9.]+ K?i?B of"
        no_space(lambda: q.put(bytes(100 << 10), block=False), f"no room left in {directory} for the 100 KiB that {queue}")
        no_space(lambda: q.reserve(200 << 10, timeout=0), f"for the 200 KiB that {queue}")
        no_space(lambda: q.put_many([bytes(50 << 10), bytes(70 << 10)], block=False), f"for the 120 KiB that {queue}")
        with pytest.raises(QueueNoSpace):
            q.reserve_array(20_000, timeout=0)
        no_space(lambda: SageQueue(name + "-2", arena=0), f"for the {3 * page >> 10} KiB that queue '{name}-2' needs at once: ")
        no_space(SageQueue, f"for the {3 * page >> 10} KiB that a queue without a name needs at once: ")
        filler.unlink()
        fill_up(filler, 3 * page)
        other = SageQueue[int](name + "-2", arena=0)  # and so much is enough
        filler.unlink()
        other.close()
        assert q.get() == b"small"


@needs_root
def test_a_file_system_without_files_left_is_named_as_such(tmp_path: pathlib.Path, run_python: Run) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=3", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        code = "from sage_queue import SageQueue; kept = [SageQueue() for _ in range(5)]"
        text = run_python(code, check=False, SAGE_QUEUE_DIR=str(tmp_path)).stderr
        assert "all of the 3 files that it may have are there" in text
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
