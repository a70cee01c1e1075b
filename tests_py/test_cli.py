"""The command line, from the outside."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers import Run, forked
from sage_queue import QueueCrowded, QueueNotFound, SageQueue, SageQueueError, _native, list_all_sage_queues, list_queues

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("rich", reason="the command line needs rich")


def sage_queue(
    *arguments: str, status: int = 0, code: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{code}\nfrom sage_queue.__main__ import main; main()", *arguments]
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "PYTHONUTF8", "PYTHONIOENCODING")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, encoding="utf-8", env={**inherited, **(environment or {})})
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
        assert re.search(rf"^{name} +2 +10 +<1% of 64 KiB +0% of 64 MiB +1 +pickle +in use$", words, re.MULTILINE)
        assert re.search(rf"^space/{name} +0 +any +0% of 4 MiB +0% of 64 MiB +1 +raw +in use$", words, re.MULTILINE)
        rows: list[dict[str, Any]] = json.loads(sage_queue("ls", "--json").stdout)
        assert [(row["name"], row["items"], row["maxsize"], row["processes"]) for row in rows] == [
            (f"space/{name}", 0, 0, 1),
            (name, 2, 10, 1),
        ]
        assert [row["name"] for row in json.loads(sage_queue("ls", "--json", "--namespace", "space").stdout)] == [other.name]
        assert (q.qsize(), q.get_stats()["participants"]) == (2, 1)
        assert [q.get(), q.get()] == [1, 2]


def rows_of(*arguments: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(sage_queue("ls", "--json", *arguments).stdout)}


def test_ls_changes_nothing_in_what_dead_processes_left(name: str, run_python: Run, queue_directory: pathlib.Path) -> None:
    code = """
import os, signal, sys
from sage_queue import SageQueue
q, full = SageQueue(sys.argv[1]), SageQueue(sys.argv[1] + "-full")
full.put(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_python(code, name, check=False)
    before = {file.name: file.read_bytes() for file in queue_directory.iterdir()}
    assert len(before) == 2
    for _ in range(2):
        rows = rows_of()
        assert [(row["state"], row["items"], row["processes"], row["dead"]) for row in rows.values()] == [("unused", 0, 0, 1), ("unused", 1, 0, 1)]
        assert "unused" in sage_queue("ls").stdout
    assert {file.name: file.read_bytes() for file in queue_directory.iterdir()} == before
    sage_queue("rm", name, f"{name}-full")


def test_ls_shows_a_full_arena_as_full(name: str) -> None:
    with SageQueue[bytes](name, arena="4 MiB", serializer="raw") as q:
        for _ in range(4):
            q.put(bytes(1 << 20))
        assert re.search(r" <1% of 4 MiB +100% of 4 MiB ", sage_queue("ls").stdout)
        assert rows_of()[name]["arena_used_bytes"] == rows_of()[name]["arena"] == 4 << 20
        q.shutdown(immediate=True)
    with SageQueue[bytes](name, arena=0) as q:
        assert re.search(r" 0% of 4 MiB +none ", sage_queue("ls").stdout)


def test_ls_tells_handles_from_processes_and_which_are_shut_down(name: str) -> None:
    with SageQueue[int](name) as q, SageQueue[int](name):
        q.put(1)
        row = rows_of()[name]
        assert (row["handles"], row["processes"], row["state"]) == (2, 1, "in use")
        q.shutdown()
        assert rows_of()[name]["state"] == "draining"
        assert re.search(rf"^{name} .* draining$", sage_queue("ls").stdout, re.MULTILINE)
        q.get()
        assert rows_of()[name]["state"] == "shut down"


def test_ls_shows_a_queue_all_of_whose_places_are_taken(name: str) -> None:
    queues = [SageQueue[int](name)]
    with contextlib.suppress(QueueCrowded):
        while True:
            queues.append(SageQueue[int](name))
    assert len(queues) == 1024
    assert rows_of()[name]["handles"] == 1024
    assert re.search(rf"^{name} .* in use$", sage_queue("ls").stdout, re.MULTILINE)
    for q in queues:
        q.close()


def test_ls_shows_what_cannot_be_opened(name: str, queue_directory: pathlib.Path) -> None:
    broken = queue_directory / f"ringbuf.{name}"
    broken.write_bytes(b"not a queue")
    assert re.search(f"^{name} +is no queue but a file of 11 B$", sage_queue("ls").stdout, re.MULTILINE)
    broken.unlink()
    assert sage_queue("ls").stdout == f"no queues in {queue_directory}\n"
    assert sage_queue("ls", "--json").stdout.strip() == "[]"


def make_socket(path: pathlib.Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path may be longer than a socket's can be
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


OBSTACLES: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "empty": (lambda path: path.touch(), "is no queue but an empty file"),
    "fifo": (os.mkfifo, "is no queue but a FIFO"),
    "folder": (os.mkdir, "is no queue but a folder"),
    "link": (lambda path: path.symlink_to("/etc/passwd"), "is no queue but a symbolic link"),
    "socket": (make_socket, "is no queue but a socket"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_whatever_lies_under_a_queues_name_is_named_and_blocks_nothing(name: str, queue_directory: pathlib.Path, what: str) -> None:
    make, told = OBSTACLES[what]
    path = queue_directory / f"ringbuf.{name}"
    make(path)
    with SageQueue[int](f"{name}-good"):
        assert re.search(f"^{name} +{told}$", sage_queue("ls").stdout, re.MULTILINE)
        assert rows_of()[name]["error"] == told
        assert rows_of()[f"{name}-good"]["error"] is None
        assert [ref.name for ref in list_queues()] == [f"{name}-good"]
        assert [row["status"] for row in list_all_sage_queues()] == ["Unknown", "Running"]
        assert json.loads(sage_queue("gc", "--json").stdout) == {"removed": 0}
        with pytest.raises(SageQueueError, match=f"'{name}', {path}, {told}; remove it .*, or take another name"):
            SageQueue(name)
        if what == "empty":
            sage_queue("rm", name)
            assert not path.exists()
        else:
            done = sage_queue("rm", name, status=1)
            assert done.stderr == f"{name}: {path} {told}: no queue's name leads to it; remove the file itself\n"
            assert path.is_symlink() or path.exists()
            path.rmdir() if what == "folder" else path.unlink()


#: What people, or enemies, may call a queue, and how it is shown.
NAMES = {
    "[/x]": "[/x]",
    "[red]alert[/red]": "[red]alert[/red]",
    ":smile:": ":smile:",
    "new\nline": "new\\nline",
    "esc\x1b[31mred\x1b]0;pwned\x07": "esc\\x1b[31mred\\x1b]0;pwned\\x07",
    "c1\x9b31m": "c1\\u009b31m",
    "\u202egnp.exe": "\\u202egnp.exe",
    "zero\u200bwidth": "zero\\u200bwidth",
    "back\\slash": "back\\\\slash",
    " space ": "\\x20space\\x20",
    "käse/日本": "käse/日本",
}


def test_no_name_reaches_the_terminal_as_it_is_and_rm_takes_it_as_it_is_shown() -> None:
    queues = [SageQueue[int](name, persistent=True) for name in NAMES]
    out = sage_queue("ls").stdout
    assert set(re.findall(r"^(.+?)  ", out, re.MULTILINE)) == {"queue", *NAMES.values()}
    assert all(character.isprintable() or character == "\n" for character in out)
    assert {row["name"] for row in json.loads(sage_queue("ls", "--json").stdout)} == set(NAMES)
    for q in queues:
        q.close()
    shown = list(NAMES.values())
    sage_queue("rm", "--", *shown[::2], *list(NAMES)[1::2])
    assert sage_queue("ls").stdout.startswith("no queues in ")


def test_what_is_no_utf_8_or_only_looks_like_a_queues_file_is_shown_and_can_be_removed(queue_directory: pathlib.Path) -> None:
    handle = _native.create(
        "raw\udcff\udc1b".replace("\udc1b", "\x1b"),
        mode="create",
        maxsize=0,
        capacity=4096,
        arena=0,
        auto_cleanup=False,
        persistent=True,
        permissions=0,
        label=None,
        tag="t\x1b[0m",
        note="",
    )
    (queue_directory / "ringbuf.\x1b[31m\udcfe\u202e").touch()
    (queue_directory / "ringbuf.[%2Fx]").touch()
    (queue_directory / "ringbuf.").touch()
    for environment in ({}, {"PYTHONIOENCODING": "ascii"}):
        out = sage_queue("ls", environment=environment).stdout
        assert re.search(r"^raw\\xff\\x1b .* t\\x1b\[0m +in use$", out, re.MULTILINE)
        assert "\\x1b[31m\\xfe\\u202e  is no queue" in out
        assert "[/x]  is no queue" in out and "ringbuf.  is no queue" in out
    names = [row["name"] for row in json.loads(sage_queue("ls", "--json").stdout)]
    assert "raw\\xff\\x1b" in names
    assert list_queues() == []
    _native.close(handle)
    sage_queue("rm", "raw\\xff\\x1b")
    done = sage_queue("rm", "[/x]", "\\x1b[31m\\xfe\\u202e", status=1)
    assert done.stderr.count("no queue's name leads to ") == 2 and "\x1b" not in done.stderr and "\u202e" not in done.stderr
    for file in queue_directory.iterdir():
        file.unlink()


def test_rm_removes_nothing_where_a_name_can_mean_two_queues() -> None:
    with SageQueue[int]("a\nb") as first, SageQueue[int]("a\\nb") as second:
        done = sage_queue("rm", "a\\nb", status=1)
        assert "can be more than one queue" in done.stderr and "ringbuf.a%0Ab" in done.stderr and "ringbuf.a%5Cnb" in done.stderr
        assert len(list_queues()) == 2
        sage_queue("rm", "a\\\\nb", "a\nb")
        assert list_queues() == []
        first.put(1)
        second.put(1)
        assert first.get() == second.get() == 1


def test_a_renamed_queue_is_told_as_such_and_never_taken_for_the_one_of_that_name(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name, persistent=True):
        pass
    path = queue_directory / f"ringbuf.{name}"
    moved = path.rename(path.with_name("ringbuf.other"))
    assert f"other  holds the queue '{name}', which nobody finds under this file name" in sage_queue("ls").stdout
    assert list_queues() == []
    with pytest.raises(QueueNotFound, match=f"holds the queue '{name}'"):
        SageQueue("other")
    assert "remove the file itself" in sage_queue("rm", "other", status=1).stderr
    moved.unlink()


def test_long_names_are_shown_whole(queue_directory: pathlib.Path) -> None:
    long = "n" * 1000
    with SageQueue[int](long), SageQueue[int]("short"):
        for environment in ({}, {"COLUMNS": "50"}, {"COLUMNS": "100"}):
            lines = sage_queue("ls", environment=environment).stdout.splitlines()
            assert any(line.split()[0] == long for line in lines)
            assert any(line.split()[0] == "short" for line in lines)
        assert [ref.name for ref in list_queues()] == [long, "short"]
        sage_queue("rm", long)
        assert [ref.name for ref in list_queues()] == ["short"]


@pytest.mark.parametrize("columns", [20, 50, 80, 200])
def test_every_line_of_ls_fits_the_terminal_and_no_figure_is_missing(name: str, columns: int, queue_directory: pathlib.Path) -> None:
    (queue_directory / "ringbuf.broken").touch()
    with SageQueue[int]("q", 7) as q, SageQueue[int]("other", 0, arena=0):
        q.put(1)
        lines = sage_queue("ls", environment={"COLUMNS": str(columns)}).stdout.splitlines()
        assert max(map(len, lines)) <= columns
        words = " ".join(lines).split()
        for word in ("q", "other", "broken", "7", "<1%", "none", "pickle", "in", "use", "empty", "file"):
            assert any(each.strip(",") == word for each in words), (word, lines)
        q.get()
    (queue_directory / "ringbuf.broken").unlink()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LANG": "C", "LC_ALL": "", "LC_CTYPE": ""},
        {"LC_ALL": "POSIX", "NO_COLOR": "1", "TERM": "dumb"},
    ],
    ids=str,
)
def test_where_the_terminal_has_only_ascii_nothing_else_is_written(environment: dict[str, str]) -> None:
    with SageQueue[int]("käse/日本") as q:
        for command in (("ls",), ("-h",), ("demo", "--messages", "1000"), ("gc",)):
            done = sage_queue(*command, environment=environment)
            assert done.stdout.isascii() and done.stderr.isascii() and "\x1b" not in done.stdout
        assert "k\\u00e4se/\\u65e5\\u672c" in sage_queue("ls", environment=environment).stdout
        assert "us, p99" in sage_queue("demo", "--messages", "1000", environment=environment).stdout
        sage_queue("rm", "k\\u00e4se/\\u65e5\\u672c")
        assert list_queues() == []
        q.put(1)


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
q = SageQueue(); q.put(1); print("ready", flush=True); sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)
"""
    with SageQueue[int](name) as q, contextlib.ExitStack() as stack:
        q.put(1)
        # Both live at once: who makes an unnamed queue removes what others have left of that kind.
        command = [sys.executable, "-c", code]
        dying = [stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) for _ in range(2)]
        for process in dying:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert json.loads(sage_queue("gc", "--json").stdout) == {"removed": 0}
        for process in dying:
            process.communicate()
        assert sage_queue("gc").stdout.startswith("removed 2 queues from ")
        assert json.loads(sage_queue("gc", "--json").stdout) == {"removed": 0}
        assert q.get() == 1


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help"), ("ls", "--help"), ("rm", "--help"), ("gc", "--help"), ("-h",), ("ls", "-h")])
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    assert "Usage: sage-queue" in sage_queue(*arguments).stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_packages_it_says_how_to_get_them(missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None"
    done = sage_queue("ls", code=code, status=2)
    assert done.stderr == f"sage-queue needs {missing} for its command line: pip install typer rich\n"


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"sage-queue \d+\.\d+\.\d+ \(layout \d+\)\n", sage_queue("--version").stdout)


@pytest.mark.parametrize("command", ["ls", "gc", "demo"])
def test_a_problem_with_the_directory_is_one_line_and_no_traceback(command: str, tmp_path: pathlib.Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for directory in ("/nowhere", str(plain), "/\x1b[31m[/x]"):
        done = sage_queue(command, status=1, environment={"SAGE_QUEUE_DIR": directory})
        assert re.fullmatch(r"sage-queue: .*\n", done.stderr), done.stderr
        assert directory.replace("\x1b", "\\x1b") in done.stderr and "SAGE_QUEUE_DIR" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--start-method", "thread"),
        ("demo", "--producers", "none"),
        ("demo", "--seconds", "0"),
        ("[/x]",),
        ("ls", "--colour"),
        ("rm",),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_is_told_what_it_lacks(arguments: tuple[str, ...]) -> None:
    done = sage_queue(*arguments, status=2)
    assert done.stderr.startswith("Usage: sage-queue") and "\nError: " in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    if "thread" in arguments:
        assert "'thread' is none of fork, spawn, forkserver" in done.stderr


def test_a_full_disk_behind_the_output_is_one_line(name: str) -> None:
    with SageQueue[int](name), open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "sage_queue", "ls"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr


# ---- other users ----

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def shared_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory for queues as /dev/shm is: every user may write there, and remove only what is its own."""
    with tempfile.TemporaryDirectory(prefix="sage_queue_tests.", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        os.chmod(directory, 0o1777)
        monkeypatch.setenv("SAGE_QUEUE_DIR", directory)
        yield pathlib.Path(directory)


def as_nobody(*arguments: str) -> tuple[int, str, str]:
    """The command line as another user has it, in a child of this process (which can read this environment's files)."""
    code = """
import contextlib, io, os, sys
from sage_queue.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # what it imports, that user may not read
    arguments, sys.argv = sys.argv, ["sage-queue", "ls"]
    main()
sys.argv = arguments
os.setgroups([]); os.setgid(65534); os.setuid(65534)
main()
"""
    inherited = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100, env=inherited)
    return done.returncode, done.stdout, done.stderr


def make_as_nobody(make: Callable[[], Any]) -> None:
    def change() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    assert os.waitpid(forked(change, make), 0)[1] == 0


@as_root
def test_root_sees_collects_and_removes_the_queues_of_others_without_unpickling(shared_directory: pathlib.Path) -> None:
    def leave() -> None:
        kept, empty = SageQueue[Any]("kept", persistent=True, serializer="raw"), SageQueue[Any]("empty", serializer="raw")
        kept.put(b"cos\nsystem\n(S'touch /tmp/unpickled'\ntR.")
        os._exit(0)
        empty.close()

    make_as_nobody(leave)
    owner = {row["owner"] for row in rows_of().values()}.pop()
    rows = rows_of()
    assert [(row["state"], row["items"]) for row in rows.values()] == [("unused", 0), ("unused", 1)]
    assert owner in sage_queue("ls").stdout
    assert sage_queue("ls", "--own").stdout.startswith("no queues")
    assert list_queues() == []
    assert json.loads(sage_queue("gc", "--own", "--json").stdout) == {"removed": 0}
    assert "belongs to another user" in sage_queue("rm", "--own", "kept", status=1).stderr
    assert json.loads(sage_queue("gc", "--json").stdout) == {"removed": 1}
    sage_queue("rm", "kept")
    assert list(shared_directory.iterdir()) == []


@as_root
def test_another_user_sees_its_own_and_what_it_may_read_and_the_rest_when_asked(shared_directory: pathlib.Path) -> None:
    make_as_nobody(lambda: (SageQueue[Any]("theirs").put(1), os._exit(0)))
    with SageQueue[int]("private"), SageQueue[int]("shared", permissions=0o644):
        (shared_directory / "ringbuf.[%2Fx]").touch()
        os.chmod(shared_directory / "ringbuf.[%2Fx]", 0o600)
        status, out, error = as_nobody("ls")
        assert (status, error) == (0, "2 files of other users not shown: --all-users\n")
        assert [line.split()[0] for line in out.splitlines()] == ["queue", "shared", "theirs"]
        assert "root" in out
        status, out, error = as_nobody("ls", "--all-users")
        assert (status, error) == (0, "") and "[/x]  belongs to root, and this user may not read it" in out and "private" in out
        status, out, error = as_nobody("ls", "--own")
        assert [line.split()[0] for line in out.splitlines()] == ["queue", "theirs"] and error == ""
        status, out, error = as_nobody("rm", "private")
        assert status == 1 and "belongs to another user, root; let that user create it with permissions=0o660" in error
        assert "Traceback" not in error
        assert as_nobody("gc") == (0, f"removed 0 queues from {shared_directory}\n", "")
    sage_queue("rm", "theirs")


@as_root
def test_what_another_user_laid_in_the_way_is_told_with_owner_and_remedy(shared_directory: pathlib.Path) -> None:
    def lay() -> None:
        os.mkfifo(shared_directory / "ringbuf.jobs")
        (shared_directory / "ringbuf.file").touch()

    make_as_nobody(lay)
    for name, told in (("jobs", "is no queue but a FIFO"), ("file", "belongs to another user")):
        with pytest.raises(SageQueueError, match=told) as caught:
            SageQueue(name)
        assert "nobody" in str(caught.value) or "uid_65534" in str(caught.value)

    def meet() -> None:
        os.setuid(1234)
        with pytest.raises(SageQueueError, match="only that user and root can remove it there; take another name, or a directory"):
            SageQueue("jobs")
        assert list_queues() == []
        assert len(list_all_sage_queues()) == 2
        os._exit(0)

    assert os.waitpid(forked(meet), 0)[1] == 0
    (shared_directory / "ringbuf.jobs").unlink()
    sage_queue("rm", "file")


@as_root
def test_a_queue_that_another_user_shares_says_how_to_open_it(shared_directory: pathlib.Path) -> None:
    with SageQueue[int]("shared", permissions=0o666) as q:

        def meet() -> None:
            os.setuid(NOBODY)
            with pytest.raises(PermissionError, match="of mode 0666, belongs to another user, root; .* open it with permissions=0o666"):
                SageQueue("shared")
            with SageQueue[int]("shared", permissions=0o666) as mine:
                mine.put(7)
            os._exit(0)

        assert os.waitpid(forked(meet), 0)[1] == 0
        assert q.get() == 7
