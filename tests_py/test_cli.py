"""The command line, from the outside."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from sage_queue import SageQueue

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")


def sage_queue(*arguments: str, status: int = 0, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{code}\nfrom sage_queue.__main__ import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--producers", "1", "--consumers", "3"),
        ("--producers", "3", "--consumers", "1", "--maxsize", "0"),
        ("--start-method", "spawn", "--producers", "2", "--consumers", "2"),
    ],
    ids=" ".join,
)
def test_the_demo_accounts_for_every_message(arguments: tuple[str, ...]) -> None:
    report = json.loads(sage_queue("demo", "--messages", "9000", "--json", *arguments).stdout)
    assert report["good"] and report["problems"] == report["left_behind"] == []
    assert report["sent"] == report["received"] == 9000
    assert report["lost"] == report["doubled"] == report["disordered"] == report["damaged"] == 0
    assert report["bytes"] > 9000 and report["seconds"] > 0 and 0 < report["p50_us"] <= report["p99_us"]


def test_the_demo_reports_in_words_too() -> None:
    out = sage_queue("demo", "--messages", "3000").stdout
    assert "3,000 of 3,000" in out
    assert re.search(r"throughput +[\d,]+ messages/s", out)
    assert re.search(r"latency +p50 [\d,]+ µs, p99 [\d,]+ µs", out)
    assert "0 lost, 0 doubled, 0 out of order, 0 damaged" in out
    assert "everything arrived, once and in order" in out


def test_the_demo_stops_after_the_seconds_asked_for() -> None:
    report = json.loads(sage_queue("demo", "--messages", "1000000000", "--seconds", "0.5", "--json").stdout)
    assert report["good"]
    assert 0 < report["received"] < 1_000_000_000


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("message['sequence'] == 500 or original(queue, message)", "lost"),
        ("(original(queue, message), message['sequence'] == 500 and original(queue, message))", "doubled"),
        ("original(queue, {**message, 'payload': 'other'} if message['sequence'] == 500 else message)", "damaged"),
        ("original(queue, {**message, 'sequence': {500: 501, 501: 500}.get(message['sequence'], message['sequence'])})", "disordered"),
    ],
)
def test_the_demo_fails_when_a_message_goes_wrong(fault: str, found: str) -> None:
    """With a queue that does wrong to one message of each producer (fork: the children have it, too)."""
    code = f"""
import sage_queue
original = sage_queue.SageQueue.put
sage_queue.SageQueue.put = lambda queue, message: {fault} if isinstance(message, dict) else original(queue, message)
"""
    arguments = ("demo", "--messages", "4000", "--json", "--producers", "4", "--consumers", "1", "--start-method", "fork")
    report = json.loads(sage_queue(*arguments, code=code, status=1).stdout)
    assert not report["good"]
    assert report[found] == 4


def test_the_demo_says_when_a_process_died() -> None:
    code = """
import os, sage_queue
original = sage_queue.SageQueue.put
def put(queue, message):
    if isinstance(message, dict) and message["producer"] == 1 and message["sequence"] == 100:
        os.kill(os.getpid(), 9)
    original(queue, message)
sage_queue.SageQueue.put = put
"""
    arguments = ("demo", "--messages", "4000", "--json", "--start-method", "fork")
    report = json.loads(sage_queue(*arguments, code=code, status=1).stdout)
    assert "producer 1 ended with exit status -9" in report["problems"]
    assert "1 processes did not report" in report["problems"]
    assert report["left_behind"] == []


def test_ls_lists_queues_with_their_numbers(name: str) -> None:
    with SageQueue[int](name, 10, capacity="64 KiB") as q, SageQueue[bytes](f"space/{name}", serializer="raw") as other:
        q.put(1)
        q.put(2)
        words = sage_queue("ls").stdout
        assert re.search(rf"{name} +2 +10 .*64 KiB +1 +pickle", words)
        assert re.search(rf"space/{name} +0 +any .*4 MiB +1 +raw", words)
        rows: list[dict[str, Any]] = json.loads(sage_queue("ls", "--json").stdout)
        assert [(row["name"], row["items"], row["maxsize"], row["processes"]) for row in rows] == [
            (f"space/{name}", 0, 0, 1),
            (name, 2, 10, 1),
        ]
        assert [row["name"] for row in json.loads(sage_queue("ls", "--json", "--namespace", "space").stdout)] == [other.name]
        assert (q.qsize(), q.get_stats()["participants"]) == (2, 1)
        assert [q.get(), q.get()] == [1, 2]


def test_ls_shows_what_cannot_be_opened(name: str, queue_directory: pathlib.Path) -> None:
    broken = queue_directory / f"ringbuf.{name}"
    broken.write_bytes(b"not a queue")
    assert re.search(f"{name} +QueueCorrupt", sage_queue("ls").stdout)
    broken.unlink()
    assert sage_queue("ls").stdout == f"no queues in {queue_directory}\n"
    assert sage_queue("ls", "--json").stdout.strip() == "[]"


def test_rm_removes_queues_and_says_what_was_not_there(name: str, queue_directory: pathlib.Path) -> None:
    for each in (name, f"space/{name}"):
        with SageQueue[int](each) as q:
            q.put(1)
    (queue_directory / "ringbuf.broken").write_bytes(b"not a queue")
    sage_queue("rm", name, f"space/{name}", "broken")
    assert list(queue_directory.iterdir()) == []
    assert "there is no such queue" in sage_queue("rm", name, status=1).stderr
    assert "cannot be empty" in sage_queue("rm", "", status=1).stderr


def test_gc_removes_what_the_dead_left_and_nothing_else(name: str) -> None:
    code = """
import os, signal, sys
from sage_queue import SageQueue
q = SageQueue(); q.put(1); os.kill(os.getpid(), signal.SIGKILL)
"""
    with SageQueue[int](name) as q:
        q.put(1)
        for expected in (2, 0):
            if expected:
                for _ in range(2):
                    subprocess.run([sys.executable, "-c", code])
                assert sage_queue("gc").stdout.startswith("removed 2 queues from ")
            assert json.loads(sage_queue("gc", "--json").stdout) == {"removed": 0}
        assert q.get() == 1


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("ls", "--help"), ("rm", "--help"), ("gc", "--help")])
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    assert "Usage: sage-queue" in sage_queue(*arguments).stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_packages_it_says_how_to_get_them(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None"
    done = sage_queue("ls", code=code, status=2)
    assert done.stderr == f"sage-queue needs {missing} for its command line: pip install 'sage-queue[cli]'\n"


def test_a_problem_with_the_directory_is_an_error_message_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_QUEUE_DIR", "/nowhere")
    for command in ("ls", "gc", "demo"):
        done = sage_queue(command, status=1)
        assert "/nowhere" in done.stderr and "Traceback" not in done.stderr
