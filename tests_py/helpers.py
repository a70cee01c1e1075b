"""What several test files need: waiting for something to be so, ending children, and looking into a queue.  No tests."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from sage_queue import SageQueue, _native

#: Long enough for anything that happens at all; a watchdog is for the rest.
SOON = 60.0

#: The environment of a program that imports this file.
WITH_HELPERS = {"PYTHONPATH": os.path.dirname(__file__)}

#: What the fixture `run_python` gives.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def until(question: Callable[[], object]) -> None:
    """Wait until the answer is yes."""
    give_up = time.monotonic() + SOON
    while not question():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def finish(*processes: Any) -> None:
    """Wait for these processes, which must all end well."""
    for process in processes:
        process.join(SOON)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def forked(*actions: Callable[[], Any]) -> int:
    """Run these one after the other in a child made by os.fork(), which leaves without any clean-up, as such children do.  Its pid."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for action in actions:
                action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def in_a_fork(*actions: Callable[[], Any]) -> None:
    """forked(), and wait for it, which must end well."""
    assert os.waitpid(forked(*actions), 0)[1] == 0


class SlowToPickle:
    """An item whose pickling and unpickling run Python code, where a signal can come between any two instructions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> dict[str, int]:
        for _ in range(20):
            state = {"number": self.number}
        return state

    def __setstate__(self, state: dict[str, int]) -> None:
        for _ in range(20):
            self.number = state["number"]


class Storm:
    """Ctrl-C at random moments, from a process of its own.  Raises KeyboardInterrupt, but only while `body` runs."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.hits = 0
        self._body = body.__code__
        signal.signal(signal.SIGINT, self._interrupt)
        victim = os.getpid()
        self._cloud = os.fork()
        while self._cloud == 0:
            time.sleep(random.random() * 0.0004)
            if os.getppid() != victim:
                os._exit(0)
            os.kill(victim, signal.SIGINT)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is self._body:
                self.hits += 1
                raise KeyboardInterrupt
            frame = frame.f_back

    def end(self) -> int:
        """How often it has hit."""
        os.kill(self._cloud, signal.SIGKILL)
        os.waitpid(self._cloud, 0)
        return self.hits


def clean(q: SageQueue[Any]) -> bool:
    """Whether the arena is empty, and nothing in it is wrong."""
    return q.get_stats()["arena_used_bytes"] == 0 and not any(_native.check_arena(q._handle).values())


def sleepers(q: SageQueue[Any]) -> int:
    """How often a call on this queue has gone to sleep so far."""
    count: int = q.get_stats()["sleeps"]
    return count
