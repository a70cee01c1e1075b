"""A container's usual /dev/shm of 64 MiB: default queues work in it together, and what crashes leave behind does not fill it."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sage_queue import SageQueue, ShutDown

pytest.importorskip("numpy")
import numpy as np  # noqa: E402  (after the check that it is there)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")

FRAMES = 80
FRAME = (1080, 1920, 3)

Mount = Callable[[str], pathlib.Path]


def shrink(frames: SageQueue[Any], small: SageQueue[Any]) -> None:
    for frame in frames:
        small.put(frame[::2, ::2].copy())
    small.shutdown()


def detect(small: SageQueue[Any], found: SageQueue[Any]) -> None:
    while True:
        try:
            frame = small.get()
        except ShutDown:
            return
        found.put((int(frame[0, 0, 0]), frame.shape))


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_three_stages_with_default_queues_pass_on_every_frame(small_tmpfs: Mount, start_method: str) -> None:
    small_tmpfs("64m")
    context = multiprocessing.get_context(start_method)
    with SageQueue() as frames, SageQueue() as small, SageQueue(arena=0) as found:
        stages = [context.Process(target=shrink, args=(frames, small)), context.Process(target=detect, args=(small, found))]
        for stage in stages:
            stage.start()
        for number in range(FRAMES):
            frames.put(np.full(FRAME, number, np.uint8))
        frames.shutdown()
        for stage in stages:
            stage.join()
        assert [stage.exitcode for stage in stages] == [0, 0]
        assert found.drain() == [(number, (540, 960, 3)) for number in range(FRAMES)]


def take_slowly(queue: SageQueue[Any], count: int, found: SageQueue[Any]) -> None:
    found.put([len(queue.get()) for _ in range(count)])


def test_puts_of_several_producers_wait_for_each_other_s_memory(small_tmpfs: Mount) -> None:
    """Four queues whose bounds together are more than the file system has: each put waits for a get and none fails."""
    small_tmpfs("24m")
    context = multiprocessing.get_context("fork")
    queues = [SageQueue(capacity="64 KiB", arena="16 MiB") for _ in range(2)]
    found: SageQueue[Any] = SageQueue(capacity="64 KiB", arena=0)
    consumers = [context.Process(target=take_slowly, args=(queue, 40, found)) for queue in queues]
    for consumer in consumers:
        consumer.start()
    for _ in range(40):
        for queue in queues:
            queue.put(bytes(3_000_000))
    for consumer in consumers:
        consumer.join()
    assert [found.get(timeout=0) for _ in queues] == [[3_000_000] * 40] * 2
    for queue in [*queues, found]:
        queue.close()


PROGRAM = """
import multiprocessing, sys, time
from sage_queue import SageQueue

def work(queue):
    while True:
        queue.get()
        time.sleep(10)

if __name__ == "__main__":
    queue = SageQueue()
    multiprocessing.Process(target=work, args=(queue,), daemon=True).start()
    for _ in range(3):
        queue.put(bytes(5_000_000))
    print("running", flush=True)
    sys.stdin.read()
"""


def run_and_kill(program: pathlib.Path) -> None:
    """Start the program, and kill it and its worker together, as a container's end or the OOM killer does."""
    tree = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert tree.stdout and tree.stdin and tree.stderr
    line = tree.stdout.readline()
    os.killpg(tree.pid, signal.SIGKILL)
    tree.wait()
    errors = tree.stderr.read()
    for pipe in (tree.stdin, tree.stdout, tree.stderr):
        pipe.close()
    assert line == "running\n", errors


def test_fifty_starts_that_are_killed_leave_nothing_to_the_next_program(small_tmpfs: Mount, tmp_path: pathlib.Path) -> None:
    directory = small_tmpfs("64m")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for _ in range(50):
        run_and_kill(program)
    with SageQueue() as queue:
        queue.put(bytes(5_000_000))
        assert len(queue.get()) == 5_000_000
    assert os.listdir(directory) == []
