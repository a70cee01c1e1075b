"""What every test stands on: queues live in a directory of this session's own, and no test may leave one there.

A hang ends with pytest-timeout's dump of all threads (`timeout` in pyproject.toml); one inside C, where no Python runs any more,
with faulthandler's, and the session with it.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest

# Before anything imports sage_queue, and for every process that a test starts.
_BASE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# A child that imports this file, too, is of the session whose directory it has inherited.
_DIRECTORY = os.environ.get("SAGE_QUEUE_TESTS") or tempfile.mkdtemp(prefix="sage_queue_tests.", dir=_BASE)
os.environ["SAGE_QUEUE_TESTS"] = _DIRECTORY
os.environ["SAGE_QUEUE_DIR"] = _DIRECTORY

LONGEST_TEST_S = 600

START_METHODS = [method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()]


@pytest.fixture(scope="session")
def queue_directory() -> pathlib.Path:
    """Where the queues of this session live."""
    return pathlib.Path(_DIRECTORY)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by nohup or in the background: tests and their children want Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[_STDERR] = os.fdopen(os.dup(2), "w")  # the real one, not what pytest captures
    # Tests fork on purpose while threads run (faulthandler's watchdog is one).
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Before anything starts Ray in this process, whose handlers for SIGBUS would stand before the library's from then on.
    items.sort(key=lambda item: item.path.name != "test_truncation.py")


_STDERR = pytest.StashKey[TextIO]()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_DIRECTORY, ignore_errors=True)


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    faulthandler.dump_traceback_later(LONGEST_TEST_S, exit=True, file=request.config.stash[_STDERR])
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def nothing_left_behind(watchdog: None) -> Iterator[None]:
    """Fail a test that leaves a queue's file, and remove it for the sake of the next one."""
    before = set(os.listdir(_DIRECTORY))
    yield
    gc.collect()
    give_up = time.monotonic() + 5  # a child may be on its way out
    while (left := set(os.listdir(_DIRECTORY)) - before) and time.monotonic() < give_up:
        time.sleep(0.02)
    for file in left:
        path = os.path.join(_DIRECTORY, file)
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    assert not left, f"the test left {sorted(left)} in shared memory"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that is this test's own."""
    return f"{request.node.originalname}-{os.getpid()}"


@pytest.fixture(params=START_METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    """multiprocessing, once for each way to start a process."""
    return multiprocessing.get_context(request.param)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a Python of its own; it must end well unless `check` is False."""

    def run(code: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **environment},
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def small_tmpfs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], pathlib.Path]]:
    """Mount a tmpfs of the size asked for and make queues live there, as in a container with a 64 MiB /dev/shm.  For root."""
    mounted: list[pathlib.Path] = []

    def mount(size: str) -> pathlib.Path:
        directory = tmp_path / f"tmpfs-{size}"
        directory.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
        mounted.append(directory)
        monkeypatch.setenv("SAGE_QUEUE_DIR", str(directory))
        return directory

    yield mount
    for directory in mounted:
        left = os.listdir(directory)
        subprocess.run(["umount", str(directory)], check=True)
        assert not left
