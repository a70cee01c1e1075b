"""The interpreter's edges: its end while threads wait, a fork while they do, subinterpreters, static variables."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SOON, Run, clean, in_a_fork, sleepers, until

import sage_queue
from sage_queue import SageQueue

ROOT = pathlib.Path(__file__).parent.parent


# ---- the end ----

# A program whose daemon threads wait for ever, each in a call of its own, when it comes to its end.
WAITING = """
import atexit, os, sys, threading, time
from sage_queue import SageQueue

empty, full, spare = SageQueue(), SageQueue(maxsize=1, arena="1 MiB"), SageQueue()
other = SageQueue(sys.argv[1])
full.put(b"x" * 900_000)
calls = {
    "get": lambda: empty.get(),
    "get with a timeout": lambda: empty.get(timeout=1000),
    "get without copying": lambda: empty.get(copy=False),
    "lease": lambda: empty.lease(),
    "get_many": lambda: empty.get_many(),
    "iteration": lambda: next(iter(empty)),
    "put": lambda: full.put(1),
    "put of a large item": lambda: full.put(b"x" * 900_000),
    "put_many": lambda: full.put_many([1, 2]),
    "reserve": lambda: full.reserve(900_000),
    "join": lambda: full.join(),
    "put again and again": lambda: [other.put((threading.get_ident(), n)) for n in range(10**9)],
    "put and get again and again": lambda: [full.get_stats() and empty.qsize() for n in range(10**9)],
}
which, how = sys.argv[2:]
for _ in range(3):
    threading.Thread(target=calls[which], daemon=True).start()
sleeps = lambda: empty.get_stats()["sleeps"] + full.get_stats()["sleeps"]
while sleeps() < 3 and "again" not in which:
    time.sleep(0.01)
time.sleep(0.02)
if how == "sys.exit": sys.exit(3)
if how == "in a thread":
    threading.Thread(target=time.sleep, args=(0.05,)).start()
if how == "atexit":
    atexit.register(lambda: (spare.put("at the exit"), spare.get(), empty.qsize()))
"""
WAITS = ["get", "get with a timeout", "get without copying", "lease", "get_many", "iteration"]
WAITS += ["put", "put of a large item", "put_many", "reserve", "join", "put again and again", "put and get again and again"]
ENDS = {"return": 0, "sys.exit": 3, "in a thread": 0, "atexit": 0}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("which", WAITS)
def test_the_interpreter_ends_quietly_while_daemon_threads_wait(
    name: str, which: str, how: str, run_python: Run, queue_directory: pathlib.Path
) -> None:
    with SageQueue[Any](name, maxsize=1000) as q:
        done = run_python(WAITING, name, which, how, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (ENDS[how], "", "")
        left = [q.get() for _ in range(q.qsize())]
        by_thread: dict[int, list[int]] = {}
        for thread, number in left:
            by_thread.setdefault(thread, []).append(number)
        for seen in by_thread.values():
            assert seen == list(range(seen[-1] + 1))  # all of them, up to some moment
        assert clean(q)
        assert q.get_stats()["participants"] == 1
    assert list(queue_directory.iterdir()) == []


@pytest.mark.parametrize("which", WAITS)
def test_ctrl_c_ends_the_interpreter_and_leaves_nothing_while_daemon_threads_wait(
    name: str, which: str, run_python: Run, queue_directory: pathlib.Path
) -> None:
    """Python ends itself by SIGINT then, so that no destructor of the C library runs."""
    done = run_python(WAITING + "os.kill(os.getpid(), 2)\ntime.sleep(60)\n", name, which, "Ctrl-C", check=False)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    with SageQueue[Any](name) as q:  # with messages in it, that of "put again and again" stays
        q.drain()
        assert clean(q)
        assert q.get_stats()["participants"] == 1
        assert q.get_stats()["recoveries"] == 0
    assert list(queue_directory.iterdir()) == []


def test_what_a_waiting_thread_had_leased_reaches_others_when_the_interpreter_ends(name: str, run_python: Run) -> None:
    code = """
import sys, threading, time
from sage_queue import SageQueue
q, never = SageQueue(sys.argv[1]), SageQueue()
def work():
    with q.lease() as message:
        never.get()
for _ in range(3): threading.Thread(target=work, daemon=True).start()
while never.get_stats()["sleeps"] < 3: time.sleep(0.01)
"""
    with SageQueue[Any](name) as q:
        for number in range(4):
            q.put(number)
        run_python(code, name)
        got = {}
        for _ in range(4):
            with q.lease(timeout=SOON) as message:
                got[message.value] = message.attempts
        assert got == {0: 2, 1: 2, 2: 2, 3: 1}
        q.join()
        assert clean(q)


def test_a_message_that_arrives_while_the_interpreter_ends_stays_for_others(name: str, run_python: Run) -> None:
    """The thread that waits for it is woken when it cannot run any more."""
    code = """
import atexit, sys, threading, time
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
got = []
threading.Thread(target=lambda: got.append(q.get()), daemon=True).start()
while q.get_stats()["sleeps"] < 1: time.sleep(0.01)
class Last:
    def __del__(self, other=SageQueue(sys.argv[1])):  # when modules are torn down, and no other thread runs any more
        other.put("late")
        time.sleep(0.1)
sys.modules["last"] = Last()
"""
    with SageQueue[Any](name) as q:
        for _ in range(5):
            done = run_python(code, name)
            assert done.stderr == ""
            assert q.get(timeout=SOON) == "late"
            assert q.empty()


# ---- fork while other threads are in calls ----


def waiting_calls(q: SageQueue[Any]) -> dict[str, Callable[[], Any]]:
    return {
        "get": lambda: q.get(timeout=SOON),
        "lease": lambda: q.lease(timeout=SOON).ack(),
        "put": lambda: q.put("more", timeout=SOON),
        "put of a large item": lambda: q.put(b"x" * 900_000, timeout=SOON),
        "reserve": lambda: q.reserve(900_000, timeout=SOON).abort(),
        "join": lambda: q.join(),
    }


@pytest.mark.parametrize("call", ["get", "lease", "put", "put of a large item", "reserve", "join"])
def test_a_child_forked_while_a_thread_waits_uses_the_queue_and_the_call_goes_on(call: str) -> None:
    with SageQueue[Any](maxsize=1, arena="1 MiB") as q:
        if call in ("put", "put of a large item", "reserve", "join"):
            q.put(b"x" * 900_000)
        ended: list[Any] = []
        thread = threading.Thread(target=lambda: ended.append(waiting_calls(q)[call]() or "ended"))
        thread.start()
        until(lambda: sleepers(q) > 0)

        def use_it() -> None:
            assert q.qsize() == (0 if call in ("get", "lease") else 1)
            with SageQueue[Any]() as own:
                own.put("mine")
                assert own.get() == "mine"
            with pytest.raises((sage_queue.Empty, sage_queue.Full)):
                q.get_nowait() if call in ("get", "lease") else q.put_nowait("more")
            q.close()

        for _ in range(3):
            in_a_fork(use_it)
        time.sleep(0.02)
        assert thread.is_alive() and not ended
        if call in ("get", "lease"):
            in_a_fork(lambda: q.put("from the child"))
        else:
            in_a_fork(q.get, q.task_done)
        thread.join(SOON)
        assert ended == ["from the child" if call == "get" else "ended"]
        if call.startswith("put"):
            assert q.get() in ("more", b"x" * 900_000)
        assert q.empty()
        until(lambda: clean(q))


def label(value: Any) -> tuple[str, int]:
    """Which item of the test below it is."""
    return ("room", value[0]) if isinstance(value, bytes) else value[:2]


def test_children_forked_at_any_moment_of_traffic_can_do_everything_and_nothing_is_lost() -> None:
    """A fork hits the other threads at whatever instruction they are at: holding locks, messages that they took, room."""
    with SageQueue[Any](capacity="256 KiB", arena="8 MiB") as q, SageQueue[Any](capacity="256 KiB", arena="8 MiB") as tally:
        stop = threading.Event()
        count = 0

        def put_all() -> None:
            nonlocal count
            while not stop.is_set():
                q.put(("parent", count, b"x" * (0, 3000, 100_000)[count % 3]), timeout=SOON)
                count += 1

        def work() -> None:
            while not stop.is_set() or not q.empty():
                try:
                    with q.lease(timeout=0.01) as message:
                        tally.put(label(message.value), timeout=SOON)
                except sage_queue.Empty:
                    pass

        def reserve() -> None:
            while not stop.is_set():
                q.reserve(50_000, timeout=SOON).abort()

        seen: list[Any] = []
        sides = [threading.Thread(target=side) for side in (put_all, work, reserve)]
        sides.append(threading.Thread(target=lambda: seen.extend(iter(lambda: tally.get(timeout=SOON), None))))
        for thread in sides:
            thread.start()

        def do_everything(number: int) -> None:
            q.put(("child", number, None), timeout=SOON)
            with q.reserve(10_000, timeout=SOON) as room:
                room[0] = number
            for _ in range(2):
                with q.lease(timeout=SOON) as message:  # whoever's it is
                    tally.put(label(message.value), timeout=SOON)

        for number in range(40):
            in_a_fork(lambda number=number: do_everything(number))  # type: ignore[misc]
        stop.set()
        for thread in sides[:3]:
            thread.join(SOON)
        while not q.empty():  # what came back when a child had gone
            with q.lease(timeout=SOON) as message:
                tally.put(label(message.value))
        tally.put(None)
        sides[3].join(SOON)
        expected = [("parent", n) for n in range(count)] + [(who, n) for who in ("child", "room") for n in range(40)]
        assert sorted(seen) == sorted(expected)
        until(lambda: clean(q))


# ---- other interpreters ----

# Runs `code` in `count` subinterpreters of a kind, one after the other; tells what each has said.
SUBINTERPRETERS = """
import sys
if sys.version_info >= (3, 13):
    import _interpreters
    make = lambda kind: _interpreters.create(kind)
    def run(interpreter, code):
        problem = _interpreters.exec(interpreter, code)
        assert problem is None, problem
else:
    import _xxsubinterpreters as _interpreters
    make = lambda kind: _interpreters.create(isolated=kind == "isolated")
    run = _interpreters.run_string
def run_in(kind, code):
    interpreter = make(kind)
    run(interpreter, code)
    _interpreters.destroy(interpreter)
TRY = '''
try:
    import sage_queue
except ImportError as error:
    print(error, flush=True)
else:
    print("it was imported", flush=True)
'''
"""
KINDS = ["legacy", "isolated"]
needs_subinterpreters = pytest.mark.skipif(sys.implementation.name != "cpython", reason="a module of CPython's")
#: Ours, or CPython's own where it comes first.
REFUSAL = re.compile(r"sage_queue cannot be used in a subinterpreter|does not support loading in subinterpreters")


@needs_subinterpreters
@pytest.mark.parametrize("kind", KINDS)
def test_a_subinterpreter_is_refused_with_an_import_error(kind: str, run_python: Run) -> None:
    done = run_python(SUBINTERPRETERS + f"for _ in range(3): run_in({kind!r}, TRY)")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(REFUSAL.search(line) for line in lines), lines


@needs_subinterpreters
@pytest.mark.parametrize("kind", KINDS)
def test_the_main_interpreter_can_use_queues_before_and_after_a_subinterpreter_tried(kind: str, run_python: Run) -> None:
    code = f"""
run_in({kind!r}, TRY)
from sage_queue import SageQueue
q = SageQueue()
room = q.reserve(100_000)
room.target[:5] = b"hello"
q.put("leased"); q.put(b"x" * 200_000)
lease, view = q.lease(), q.get(copy=False)
for _ in range(3):
    run_in({kind!r}, TRY)
    room.commit()
    room = q.reserve(100_000)
    room.target[:5] = b"hello"
    assert q.get()[:5] == b"hello" and view == b"x" * 200_000
lease.nack()
assert q.get() == "leased"
del view, room
assert q.get_stats()["arena_used_bytes"] == 0
print("good")
"""
    done = run_python(SUBINTERPRETERS + code)
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert last == "good"
    assert len(lines) == 4 and all(REFUSAL.search(line) for line in lines), lines


def test_importing_the_package_anew_leaves_what_is_held_usable(run_python: Run) -> None:
    """As test frameworks do that throw modules away between tests."""
    code = """
import sys
import sage_queue
q = sage_queue.SageQueue()
room = q.reserve(1000)
q.put(1)
lease = q.lease()
for module in [each for each in sys.modules if each.startswith("sage_queue")]:
    del sys.modules[module]
import sage_queue as anew
assert anew is not sage_queue
room.commit()
lease.nack()
with anew.open_queue(q.name) as again:
    assert again.get() == 1 and len(again.get()) == 1000
    again.put("to the old one")
assert q.get() == "to the old one"
"""
    assert run_python(code).stderr == ""


# ---- nothing static that anybody writes, but for these ----

#: Every static variable of the Python module's C files that is not const, and why it needs no lock.
STATIC = {
    "block.c: block_type": "written while the module is imported, in the main interpreter only",
    "taken.c: taken_type": "likewise",
    "port.c: port_type": "likewise",
    "port.c: protocol": "likewise",
    "port.c: type": "likewise",
    "port.c: callback_name": "likewise",
    "port.c: torch_name": "likewise",
    "batches.c: spare": "taken and put back with the GIL held; who finds none makes another",
    "port.c: modules_then": "with the GIL held; what another thread may see of it meanwhile is an old answer",
    "port.c: known": "likewise",
}
#: Tables that CPython wants without const, and does not write.
TABLES = {"PyMethodDef", "PyGetSetDef", "PyMemberDef", "PyType_Slot", "PyType_Spec", "PyModuleDef", "PyModuleDef_Slot"}


def static_variables() -> set[str]:
    found = set()
    for path in sorted((ROOT / "python").glob("*.c")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        for declaration in re.findall(r"^\s*static\s+(?!inline\b|const\b)([^;={(]*?)\s*(?:=|;)", text, re.MULTILINE):
            kind, names = declaration.split(None, 1)
            if kind not in TABLES:
                found |= {f"{path.name}: {name.strip(' *')}" for name in names.replace("*", " ").split(",")}
    return {re.sub(r": .*\b(\w+)(\[\])?$", r": \1", each) for each in found}


def test_every_static_variable_of_the_module_is_known_and_has_its_reason() -> None:
    assert static_variables() <= set(STATIC)
    assert "port.c: known" in static_variables()  # so that it is seen to look


def test_the_module_does_not_claim_to_run_without_the_gil() -> None:
    """Then a free-threaded interpreter takes the GIL back when it imports us."""
    for path in [*(ROOT / "python").glob("*.[ch]"), ROOT / "cbuild.py"]:
        assert not re.search(r"GIL_NOT_USED|Py_mod_gil|SetGIL", path.read_text()), path.name
    if hasattr(sys, "_is_gil_enabled"):
        assert sys._is_gil_enabled()
