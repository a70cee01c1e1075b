"""What importing the package costs, and what it does not bring along."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

import sage_queue

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = ["typing", "re", "json", "multiprocessing", "asyncio", "typer", "rich", "ray", "numpy", "cffi", "dataclasses", "inspect", "ctypes"]


def test_importing_brings_nothing_heavy_along(run_python: Run) -> None:
    code = """
import sys
before = set(sys.modules)
import sage_queue
q = sage_queue.SageQueue(); q.put({"a": 1}); q.get(); q.close()
print(*(set(sys.modules) - before))
"""
    brought = {module.partition(".")[0] for module in run_python(code).stdout.split()}
    assert brought & set(HEAVY) == set()


def test_importing_changes_no_signal_handler_starts_no_thread_and_says_nothing(run_python: Run) -> None:
    code = """
import signal, threading
before = [signal.getsignal(number) for number in signal.valid_signals()]
import sage_queue
q = sage_queue.SageQueue()
assert before == [signal.getsignal(number) for number in signal.valid_signals()]
assert threading.active_count() == 1
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")


def test_everything_public_is_named_and_documented() -> None:
    assert len(set(sage_queue.__all__)) == len(sage_queue.__all__)
    for name in sage_queue.__all__:
        assert getattr(sage_queue, name).__doc__, name
    public = {name for name in vars(sage_queue.SageQueue) if not name.startswith("_")}
    assert all(getattr(sage_queue.SageQueue, name).__doc__ for name in public)
    assert sage_queue.__version__.count(".") == 2


def test_a_queue_can_be_made_and_used_in_a_thread(run_python: Run) -> None:
    code = """
import threading
def use():
    import sage_queue
    q = sage_queue.SageQueue(); q.put(1); assert q.get() == 1; q.close()
thread = threading.Thread(target=use); thread.start(); thread.join()
"""
    assert run_python(code).stderr == ""


@pytest.mark.parametrize("module", ["sage_queue._codec", "sage_queue._address", "sage_queue._errors"])
def test_the_lowest_floor_needs_none_above(run_python: Run, module: str) -> None:
    code = f"""
import importlib.util, sys, types
package = types.ModuleType("sage_queue")
package.__path__ = importlib.util.find_spec("sage_queue").submodule_search_locations
sys.modules["sage_queue"] = package
import {module}
assert not any(name in sys.modules for name in ("sage_queue._native", "sage_queue._queue", "sage_queue._ringbuf"))
"""
    run_python(code)
