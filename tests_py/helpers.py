"""What several test files need: waiting for something to be so, ending children, and looking into a queue.  No tests."""

from __future__ import annotations

import os
import subprocess
import time
import traceback
from collections.abc import Callable
from typing import Any

from sage_queue import SageQueue, _native

#: Long enough for anything that happens at all; a watchdog is for the rest.
SOON = 60.0

#: What the fixture `run_python` gives.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def until(question: Callable[[], bool]) -> None:
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


def in_a_fork(*actions: Callable[[], Any]) -> None:
    """Run these one after the other in a child made by os.fork(), which leaves without any clean-up, as such children do."""
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
    assert os.waitpid(child, 0)[1] == 0


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


def clean(q: SageQueue[Any]) -> bool:
    """Whether the arena is empty, and nothing in it is wrong."""
    return q.get_stats()["arena_used_bytes"] == 0 and not any(_native.check_arena(q._handle).values())


def sleepers(q: SageQueue[Any]) -> int:
    """How often a call on this queue has gone to sleep so far."""
    count: int = q.get_stats()["sleeps"]
    return count
