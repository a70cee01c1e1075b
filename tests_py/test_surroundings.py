"""What the world around a queue does to it: containers, clocks, other users, limits, full file systems, files deleted under their users.

The C suite of the same name (tests_c/test_surroundings.c) stops processes at every point, and has the thousands of handles.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from helpers import SOON, Run, forked, in_a_fork, until
from sage_queue import Empty, Full, QueueAccessDenied, QueueNoDirectory, QueueNoSpace, SageQueue, _native

NOBODY = 65534

#: As `.ci/surroundings` has it.
LONG = bool(os.environ.get("SAGE_QUEUE_LONG"))
CONTAINER = ("--pid", "--ipc", "--uts", "--mount-proc")


def apart(*options: str) -> list[str]:
    """What stands before a command that is to run in namespaces of its own.  Where the system allows none, the test is skipped."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) here, and this needs namespaces")
    command = ["unshare", *options, "--fork", "--kill-child", *(["--map-root-user"] if os.geteuid() else [])]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this system makes no such namespaces for us ({' '.join(options)}): {tried.stderr.strip()}")
    return command


class Program:
    """A Python program in namespaces, that we talk with by lines.  Its `queue` is the queue whose name we gave it."""

    PRELUDE = "import json, os, sys, time\nfrom sage_queue import SageQueue\nqueue = SageQueue(sys.argv[1], label=sys.argv[2])\n"

    def __init__(self, command: list[str], code: str, *arguments: str) -> None:
        program = [*command, sys.executable, "-u", "-c", self.PRELUDE + code, *arguments]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended"
        return json.loads(line)

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> None:
        assert self.process.wait(SOON) == 0

    def kill(self) -> None:
        """The program, too, dies at once: --kill-child."""
        self.process.kill()
        self.process.wait(SOON)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Start programs, all of which end with the test."""
    programs: list[Program] = []

    def start_one(*arguments: Any) -> Program:
        programs.append(Program(*arguments))
        return programs[-1]

    yield start_one
    for program in programs:
        program.kill()


@pytest.fixture
def open_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory for queues that every user may use, as /dev/shm is."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sage_queue_tests.", dir=base) as directory:
        os.chmod(directory, 0o1777)
        monkeypatch.setenv("SAGE_QUEUE_DIR", directory)
        yield pathlib.Path(directory)
        gc.collect()
        assert os.listdir(directory) == []


def as_nobody(*actions: Callable[[], Any]) -> None:
    """Run these in a child that belongs to another user.  It must end well."""
    in_a_fork(become_nobody, *actions)


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def unlinked(q: SageQueue[Any]) -> int:
    """0: it has its name; 1: that was removed; 2: that was deleted."""
    state: int = q.get_stats()["unlinked"]
    return state


def path_of(q: SageQueue[Any]) -> str:
    return _native.path_of(q._handle)


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


# ---- containers, and process numbers ----

TAKER = """
with queue.lease() as message:
    print(json.dumps(os.getpid()))
    sys.stdin.readline()
"""

HEIR = """
from sage_queue import _native
print(json.dumps([os.getpid(), sorted((peer["label"], peer["pid"]) for peer in _native.peers(queue._handle))]))
print(json.dumps(queue.get(timeout=60)))
"""


def test_the_death_of_one_container_is_found_out_in_another_and_both_have_process_number_one(
    name: str, start: Callable[..., Program]
) -> None:
    command = apart(*CONTAINER)
    with SageQueue[str](name, label="outside") as q:
        q.put("work")
        taker = start(command, TAKER, name, "taker")
        assert taker.hear() == 1
        heir = start(command, HEIR, name, "heir")
        # Numbers are as each process sees its own: two may be the same, and the label tells them apart.
        assert heir.hear() == [1, [["heir", 1], ["outside", os.getpid()], ["taker", 1]]]
        assert q.get_stats()["participants"] == 3
        taker.kill()
        assert heir.hear() == "work"
        heir.finish()
        assert q.get_stats()["participants"] == 1


REUSED = """
import signal
from sage_queue import _native
told, tell = os.pipe()

def child(action):
    pid = os.fork()
    if pid == 0:
        action()
        os.write(tell, b"!")
        time.sleep(1000)
    os.read(told, 1)
    return pid

def again(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))

def take():
    global lease
    lease = queue.lease()

try:
    first = child(take)
    again(first)
except PermissionError:
    print(json.dumps("no"))
    raise SystemExit
second = child(lambda: queue.qsize())  # attached, under the dead one's number
assert second == first
print(json.dumps([queue.get(timeout=60), [peer["pid"] for peer in _native.peers(queue._handle)].count(first)]))
queue.put("more")
again(second)
third = child(take)
again(third)
fourth = child(lambda: None)  # not attached
assert first == second == third == fourth
print(json.dumps([queue.get(timeout=60), [peer["pid"] for peer in _native.peers(queue._handle)].count(first)]))
os.kill(fourth, signal.SIGKILL)
os.waitpid(fourth, 0)
"""


def test_a_dead_process_is_found_out_also_when_another_one_has_its_number(name: str, start: Callable[..., Program]) -> None:
    with SageQueue[str](name) as q:
        q.put("work")
        program = start(apart(*CONTAINER), REUSED, name, "parent")
        heard = program.hear()
        if heard == "no":
            pytest.skip("process numbers cannot be chosen here")
        assert heard == ["work", 1]
        assert program.hear() == ["more", 0]
        program.finish()


def test_a_zombie_is_dead(name: str) -> None:
    with SageQueue[str](name) as q:
        q.put("work")
        leases = []
        child = forked(lambda: leases.append(q.lease()), lambda: os.kill(os.getpid(), signal.SIGKILL))
        until(lambda: pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert q.get(timeout=SOON) == "work"
        assert q.get_stats()["participants"] == 1
        os.waitpid(child, 0)


# ---- clocks ----

RELAY = """
from sage_queue import Empty, Full
other = SageQueue(sys.argv[3])
print(json.dumps(time.monotonic()))
began = time.monotonic()
try:
    queue.get(timeout=0.2)
    raise SystemExit("got something")
except Empty:
    print(json.dumps(time.monotonic() - began))
while (message := queue.get(timeout=60)) is not None:
    other.put(message, timeout=60)
with other.lease() as message:
    print(json.dumps("leased"))
    sys.stdin.readline()
"""


def test_processes_whose_monotonic_clocks_differ_share_a_queue(name: str, start: Callable[..., Program]) -> None:
    behind = -int(min(time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()) / 2)
    with SageQueue[Any](name, arena="4 MiB") as there, SageQueue[Any](name + "-back", arena="4 MiB") as back:
        for offset in (5_000_000, behind):
            program = start(apart("--time", "--monotonic", str(offset)), RELAY, name, "relay", back.name)
            assert abs(program.hear() - time.monotonic() - offset) < abs(offset) / 2  # it is as we wanted it
            assert program.hear() >= 0.2
            for number in range(60):
                # What one frees has its time on it, which the other's clock has passed long ago, or reaches long after.
                payload = random.Random(number).randbytes(300_000 if number % 2 else 10)
                there.put((number, payload), timeout=SOON)
                assert back.get(timeout=SOON) == (number, payload)
            began = time.monotonic()
            with pytest.raises(Empty):
                back.get(timeout=0.2)
            assert time.monotonic() - began >= 0.2
            back.put("to be inherited")
            there.put(None)
            assert program.hear() == "leased"
            program.kill()
            assert back.get(timeout=SOON) == "to be inherited"
        until(lambda: back.get_stats()["arena_used_bytes"] == there.get_stats()["arena_used_bytes"] == 0)


STEPPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int calls;

static long step(void) { return (__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) % 2 ? 1 : -1) * 864000L; }

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += step();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
"""

UNDER_STEPS = """
import asyncio, os, pickle, signal, sys, threading, time
from sage_queue import Empty, Full, SageQueue, SageQueueRef, _native
assert max(abs(time.time() - time.time()) for _ in range(10)) > 86400, "the clock does not step"
q = SageQueue(sys.argv[1], 1)

def lasted(call, error):
    began = time.monotonic()
    try:
        call()
    except error:
        return time.monotonic() - began
    raise AssertionError

assert lasted(lambda: q.get(timeout=0.25), Empty) >= 0.25
q.put("first")
assert lasted(lambda: q.put("second", timeout=0.25), Full) >= 0.25
assert q.get() == "first"
assert lasted(lambda: asyncio.run(q.get_async(timeout=0.25)), Empty) >= 0.25
assert lasted(lambda: q.lease(timeout=0.25), Empty) >= 0.25

def child(action):
    pid = os.fork()
    if pid == 0:
        action()
        time.sleep(1000)
    return pid

for _ in range(5):  # a wait that ends, as a message comes
    threading.Timer(0.15, q.put, ("late",)).start()
    assert q.get(timeout=60) == "late"
q.put("work")
told, tell = os.pipe()
leases = []
pid = child(lambda: (leases.append(q.lease()), os.write(tell, b"!")))
os.read(told, 1)
assert lasted(lambda: q.get(timeout=0.25), Empty) >= 0.25  # it lives, and keeps what it has
os.kill(pid, signal.SIGKILL)
assert q.get(timeout=60) == "work"
os.waitpid(pid, 0)
for _ in range(3):
    again = pickle.loads(pickle.dumps(q))
    assert again.get_reference() == q.get_reference()
    again.close()
q.task_done(); q.task_done()
print("good")
"""


def test_steps_of_the_wall_clock_end_no_wait_and_kill_nobody(name: str, run_python: Run, tmp_path: pathlib.Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here to make a clock that steps")
    source, library = tmp_path / "stepping.c", tmp_path / "stepping.so"
    source.write_text(STEPPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    assert run_python(UNDER_STEPS, name, LD_PRELOAD=str(library)).stdout == "good\n"


# ---- other users ----


@root_only
def test_another_user_is_kept_out_and_told_what_to_do(name: str, open_directory: pathlib.Path) -> None:
    def try_everything() -> None:
        for attempt in (
            lambda: SageQueue[Any](name),
            lambda: SageQueue[Any](name, mode="open"),
            lambda: SageQueue[Any](name, permissions=0o666),
            lambda: SageQueue[Any](name, mode="fresh"),
            reference.get_queue,
            lambda: sage_queue.destroy_queue(name),
        ):
            with pytest.raises(QueueAccessDenied, match=f"queue '{name}' in .* permission denied.* permissions=0o660"):
                attempt()
        assert sage_queue.collect_garbage() == 0

    with SageQueue[str](name) as q:
        q.put("mine")
        reference = q.get_reference()
        as_nobody(try_everything)
        assert q.get() == "mine"
        assert unlinked(q) == 0


@root_only
def test_another_user_who_is_let_in_takes_part_and_cannot_remove_anything(name: str, open_directory: pathlib.Path) -> None:
    told, tell = os.pipe()

    def take_part() -> None:
        with pytest.raises(QueueAccessDenied, match="belongs to another user"):  # he, too, must have wanted it
            SageQueue[Any](name)
        with SageQueue[Any](name, permissions=0o666) as his:
            assert his.get(timeout=SOON) == "for him"
            his.put(["from him", b"x" * 100_000])
            with pytest.raises(QueueAccessDenied):
                his.destroy()
            with pytest.raises(QueueAccessDenied):
                sage_queue.destroy_queue(name)
            assert unlinked(his) == 0

    def take_and_wait() -> None:
        with SageQueue[Any](name, permissions=0o666) as his, his.lease():
            os.write(tell, b"!")
            time.sleep(1000)

    with SageQueue[Any](name, permissions=0o666) as q:
        q.put("for him")
        as_nobody(take_part)
        assert q.get() == ["from him", b"x" * 100_000]
        q.put("again")
        child = forked(become_nobody, take_and_wait)
        os.read(told, 1)
        with pytest.raises(Empty):
            q.get(timeout=0.2)
        os.kill(child, signal.SIGKILL)
        assert q.get(timeout=SOON) == "again"
        os.waitpid(child, 0)
        assert unlinked(q) == 0
        os.unlink(path_of(q))
        assert unlinked(q) == 2  # that he tried to remove it is forgotten
    os.close(told)
    os.close(tell)


# ---- directories ----

READ_ONLY = """
import subprocess
from sage_queue import QueueAccessDenied, open_queue
here, there = sys.argv[3], sys.argv[4]
subprocess.run(["mount", "--bind", here, there], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", there], check=True)
os.environ["SAGE_QUEUE_DIR"] = there
texts = []
for attempt in (lambda: SageQueue("new"), lambda: open_queue(sys.argv[1])):
    try:
        attempt()
        raise SystemExit("it was let in")
    except QueueAccessDenied as error:
        texts.append(str(error))
print(json.dumps(texts))
queue.put("still works")
"""


def test_a_read_only_directory_is_named_as_the_cause(
    name: str, start: Callable[..., Program], queue_directory: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with SageQueue[str](name) as q:
        program = start(apart("--mount"), READ_ONLY, name, "inside", str(queue_directory), str(tmp_path))
        for text in program.hear():
            assert f"{tmp_path} is read-only" in text and "SAGE_QUEUE_DIR" in text
        program.finish()
        assert q.get(timeout=SOON) == "still works"


@root_only
def test_a_directory_that_one_may_not_write_to_is_named_as_the_cause(name: str, open_directory: pathlib.Path) -> None:
    def try_it() -> None:
        with pytest.raises(QueueAccessDenied, match=f"{open_directory} is read-only .* or not this user's to write to"):
            SageQueue[Any](name)

    os.chmod(open_directory, 0o755)
    as_nobody(try_it)


def test_when_the_directory_goes_its_users_go_on_and_newcomers_are_told(
    name: str, monkeypatch: pytest.MonkeyPatch, queue_directory: pathlib.Path
) -> None:
    directory = queue_directory / "goes"
    directory.mkdir()
    monkeypatch.setenv("SAGE_QUEUE_DIR", str(directory))
    with SageQueue[int](name) as q, SageQueue[int](name) as other:
        shutil.rmtree(directory)
        q.put(1)
        assert other.get() == 1
        assert unlinked(q) == unlinked(other) == 2
        with pytest.raises(QueueNoDirectory, match="goes is no directory that can hold .* SAGE_QUEUE_DIR"):
            SageQueue[int](name)


def test_a_directory_on_a_disk_holds_queues_or_is_refused_clearly(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("SAGE_QUEUE_DIR", str(tmp_path))
    try:
        q = SageQueue[Any](name, arena="4 MiB")
    except QueueNoDirectory as error:
        assert "name one on a tmpfs in SAGE_QUEUE_DIR" in str(error)
        return
    with q, SageQueue[Any](name) as other:
        for number in range(200):
            q.put((number, b"x" * (number % 3 * 100_000)))
            assert other.get() == (number, b"x" * (number % 3 * 100_000))
    assert os.listdir(tmp_path) == []


# ---- limits ----

LIMITED = """
import gc, resource, sys
import sage_queue
from sage_queue import SageQueue
keeper = SageQueue(sys.argv[1])
which, limit, error = getattr(resource, sys.argv[2]), int(sys.argv[3]), getattr(sage_queue, sys.argv[4])
hard = resource.getrlimit(which)[1]
resource.setrlimit(which, (limit, hard))
made = []
try:
    for number in range(10_000):
        made.append(SageQueue())
    raise SystemExit("no limit")
except error as caught:
    print(caught)
for q in [keeper, *made]:  # those that there are work
    q.put(b"x" * 10_000)
    assert q.get() == b"x" * 10_000
for q in made:
    q.close()
resource.setrlimit(which, (hard, hard))
SageQueue().close()
keeper.close()
"""


@pytest.mark.parametrize(
    ("which", "limit", "error", "text"),
    [
        ("RLIMIT_NOFILE", 128, "QueueNoFiles", "out of file descriptors for a queue without a name; close some, or raise the limit"),
        ("RLIMIT_AS", 4 << 30, "QueueNoMemory", "no memory or address space left in this process for a queue without a name"),
        ("RLIMIT_FSIZE", 1 << 20, "QueueNoSpace", "limit on the size of files (ulimit -f), which is 1 MiB"),
    ],
)
def test_a_limit_of_the_process_is_an_error_that_names_it_and_the_queues_there_are_go_on(
    name: str, run_python: Run, which: str, limit: int, error: str, text: str
) -> None:
    if resource.getrlimit(getattr(resource, which))[1] not in (resource.RLIM_INFINITY,) and which != "RLIMIT_NOFILE":
        pytest.skip(f"{which} is set here already")
    assert text in run_python(LIMITED, name, which, str(limit), error).stdout


COMING_AND_GOING = """
import os, sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1], capacity=4096, arena="4 MiB")
def belongings():
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "ringbuf" in line or "/#" in line]
    return len(os.listdir("/proc/self/fd")), len(lines), q.get_stats()["participants"]
reference = q.get_reference()
reference.get_queue().close()
before = belongings()
for number in range(int(sys.argv[2])):
    other = SageQueue(sys.argv[1]) if number % 2 else reference.get_queue()
    if number % 50 == 0:
        other.put(number)
        assert q.get() == number
    if number % 3:
        other.close()
    del other
assert belongings() == before, (belongings(), before)
q.close()
"""


def test_after_thousands_of_handles_one_after_the_other_everything_is_as_before(name: str, run_python: Run) -> None:
    run_python(COMING_AND_GOING, name, "10000" if LONG else "1000")


CHILDREN = """
import os, sys, time
from sage_queue import SageQueue
q = SageQueue(sys.argv[1])
for number in range(1000):
    if number >= 20:
        assert os.wait()[1] == 0
    if os.fork() == 0:
        if number % 2:
            q.put(number)
        os._exit(0)
for _ in range(20):
    assert os.wait()[1] == 0
assert sorted(q.get(timeout=60) for _ in range(500)) == list(range(1, 1000, 2))
assert q.empty()
q.get_stats()  # finds the dead
assert q.get_stats()["participants"] == 1
q.close()
"""


def test_a_thousand_children_that_end_at_once_without_closing_leave_nothing(name: str, run_python: Run) -> None:
    run_python(CHILDREN, name)


def test_messages_survive_a_file_system_that_others_fill_and_empty_all_the_time(
    name: str, small_tmpfs: Callable[[str], pathlib.Path]
) -> None:
    directory = small_tmpfs("8m")
    messages, refused = 5000 if LONG else 600, 0
    filler = directory / "filler"
    done = threading.Event()

    def fill() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                for _ in range(8 << 4):
                    file.write(b"x" * (64 << 10))
            time.sleep(0.003)
            filler.unlink(missing_ok=True)
            time.sleep(0.003)

    def payload(number: int) -> bytes:
        return random.Random(number).randbytes((20, 2000, 40_000, 300_000)[number % 4])

    def consume() -> None:
        with SageQueue[Any](name) as q:
            for number in range(messages):
                assert q.get(timeout=SOON) == (number, payload(number))

    with SageQueue[Any](name, capacity="1 MiB", arena="32 MiB") as q:
        consumer = forked(consume)
        thread = threading.Thread(target=fill)
        thread.start()
        try:
            for number in range(messages):
                item = (number, payload(number))
                give_up = time.monotonic() + SOON
                with contextlib.suppress(Full):
                    try:
                        q.put_nowait(item)
                        continue
                    except QueueNoSpace:
                        refused += 1
                while True:
                    try:
                        q.put(item, timeout=SOON)  # waits for pages, too, while there is a message that may free some
                        break
                    except QueueNoSpace:
                        assert time.monotonic() < give_up
        finally:
            done.set()
            thread.join()
        assert os.waitpid(consumer, 0)[1] == 0
        filler.unlink(missing_ok=True)
        q.put(b"x" * 1_000_000)
        assert q.get() == b"x" * 1_000_000
        assert refused > 0  # else this was no test
        assert q.get_stats()["arena_used_bytes"] == 0


# ---- the file is deleted, as systemd does (RemoveIPC) when a user logs out ----

DELETED = "was deleted while the queue is in use"


def quiet() -> contextlib.AbstractContextManager[Any]:
    """No warning may come."""

    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield

    return manager()


def wait_in_get(q: SageQueue[Any]) -> None:
    with pytest.raises(Empty):
        q.get(timeout=0.25)


def wait_in_put(q: SageQueue[Any]) -> None:
    q.put("the only one")
    with pytest.raises(Full):
        q.put("one too many", timeout=0.25)
    assert q.get() == "the only one"


def wait_in_lease(q: SageQueue[Any]) -> None:
    with pytest.raises(Empty):
        q.lease(timeout=0.25)


def wait_in_a_batch(q: SageQueue[Any]) -> None:
    with pytest.raises(Empty):
        q.get_many(10, timeout=0.25)


def wait_in_wait(q: SageQueue[Any]) -> None:
    assert sage_queue.wait([q], timeout=0.4) == []


def wait_in_a_loop(q: SageQueue[Any]) -> None:
    with pytest.raises(Empty):
        asyncio.run(q.get_async(timeout=0.4))


def poll(q: SageQueue[Any]) -> None:
    for _ in range(30):
        with pytest.raises(Empty):
            q.get_nowait()
        time.sleep(0.005)


@pytest.mark.parametrize("wait", [wait_in_get, wait_in_put, wait_in_lease, wait_in_a_batch, wait_in_wait, wait_in_a_loop, poll])
def test_whoever_waits_is_warned_once_that_the_file_was_deleted(name: str, wait: Callable[[SageQueue[Any]], None]) -> None:
    with SageQueue[Any](name, 1) as q:
        with quiet():
            wait(q)
        os.unlink(path_of(q))
        with pytest.warns(RuntimeWarning, match=f"the file of queue '{name}', {path_of(q)}, {DELETED}.*RemoveIPC") as caught:
            wait(q)
        assert len(caught) == 1
        with quiet():
            wait(q)


def test_the_warning_points_at_the_line_that_waits(name: str) -> None:
    with SageQueue[Any](name) as q:
        os.unlink(path_of(q))
        with pytest.warns(RuntimeWarning, match=DELETED) as caught, contextlib.suppress(Empty):
            q.get(timeout=0.25)
        assert caught[0].filename == __file__


def test_a_warning_that_is_made_an_error_ends_the_call_and_loses_nothing(name: str) -> None:
    with SageQueue[Any](name, 1) as q:
        os.unlink(path_of(q))
        q.put("kept")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match=DELETED):
                q.put("not put", timeout=SOON)
        assert q.get() == "kept"
        assert q.empty()


def test_those_who_have_a_deleted_queue_go_on_and_newcomers_get_another_one(name: str) -> None:
    with SageQueue[Any](name) as q, SageQueue[Any](name) as other:
        reference = q.get_reference()
        q.put("before")
        os.unlink(path_of(q))
        q.put(["after", b"x" * 200_000])
        in_a_fork(lambda: q.put("from a child"))
        assert [other.get(), other.get(), other.get()] == ["before", ["after", b"x" * 200_000], "from a child"]
        assert unlinked(q) == unlinked(other) == 2
        with pytest.raises(sage_queue.QueueNotFound):
            reference.get_queue()
        with SageQueue[Any](name) as new:
            assert unlinked(new) == 0
            new.put("new")
            assert q.empty()
            with pytest.raises(sage_queue.QueueNotFound, match="is gone, and another one"):
                reference.get_queue()
            q.close()
            other.close()  # the last of the old one leaves the new one alone
            assert os.path.exists(path_of(new))
            assert new.get() == "new"


def test_a_queue_that_was_destroyed_is_not_reported(name: str) -> None:
    with SageQueue[Any](name) as one, SageQueue[Any](name) as other, SageQueue[Any](name + "-2") as third, quiet():
        one.destroy()
        sage_queue.destroy_queue(third.name)
        for q in (other, third):
            assert unlinked(q) == 1
            wait_in_get(q)
            wait_in_wait(q)


def test_ls_shows_deleted_queues_with_their_users_and_no_destroyed_ones(name: str, tmp_path: pathlib.Path) -> None:
    def rows() -> list[dict[str, Any]]:
        done = subprocess.run([sys.executable, "-m", "sage_queue", "ls", "--json"], capture_output=True, text=True, check=True)
        return [row for row in json.loads(done.stdout) if row["name"].startswith(name)]

    with SageQueue[Any](name) as q, SageQueue[Any](name + "-gone") as gone, SageQueue[Any](name + "-here"):
        os.unlink(path_of(q))
        gone.destroy()
        by_name = {row["name"]: row for row in rows()}
        assert sorted(by_name) == [name, name + "-here"]
        assert by_name[name + "-here"]["error"] is None
        assert by_name[name]["pids"] == [os.getpid()]
        assert by_name[name]["error"] == f"its file was deleted while in use by {os.getpid()}"
        os.environ["SAGE_QUEUE_DIR"], here = str(tmp_path), os.environ["SAGE_QUEUE_DIR"]
        try:
            assert rows() == []  # those of other directories are not shown
        finally:
            os.environ["SAGE_QUEUE_DIR"] = here
    assert rows() == []


# ---- descriptors that a program closes, and those it has not ----

CLOSES_ALL = """
q = SageQueue(sys.argv[1]); q.put("important")
lease = q.lease()
os.closerange(3, 64)
mine = [open(sys.argv[2] + str(number), "w") for number in range(8)]
q.get_stats()
lease.ack()
q.put("more")
other = os.fork()
if other == 0:
    with SageQueue(sys.argv[1], mode="open") as again:
        os._exit(0 if again.get(timeout=60) == "more" and again.get_stats()["participants"] == 2 else 1)
assert os.waitpid(other, 0)[1] == 0
q.put("left for the test")
q.close()
for number, file in enumerate(mine):
    file.write(str(number)); file.close()
    assert open(sys.argv[2] + str(number)).read() == str(number)
print("good")
"""


def test_a_program_that_closes_all_descriptors_keeps_its_queue_and_its_own_files(
    name: str, run_python: Run, tmp_path: pathlib.Path
) -> None:
    code = "import os, sys\nfrom sage_queue import SageQueue\n" + CLOSES_ALL
    assert run_python(code, name, str(tmp_path / "mine")).stdout == "good\n"
    with SageQueue[str](name) as q:
        assert q.get_nowait() == "left for the test"


def test_a_lease_of_a_process_that_closed_all_descriptors_stays_its_own_once_it_has_looked(name: str) -> None:
    told, tell = os.pipe()

    def work_as_a_daemon() -> None:
        with SageQueue[str](name) as q:
            os.dup2(tell, 63)
            os.closerange(3, 63)
            lease = q.lease(timeout=SOON)
            q.get_stats()
            _native.recover(q._handle, name)
            os.write(63, b"!")
            until(lambda: q.qsize() == 1)  # the test has looked in vain
            lease.ack()

    with SageQueue[str](name) as q:
        q.put("work")
        child = forked(work_as_a_daemon)
        os.read(told, 1)
        with pytest.raises(Empty):
            q.get(timeout=0.3)
        q.put("go on")
        assert os.waitpid(child, 0)[1] == 0
        assert q.get(timeout=SOON) == "go on"
        assert q.get_stats()["recoveries"] == 0
    os.close(told)
    os.close(tell)


def test_a_queue_whose_descriptor_cannot_be_had_again_says_so_and_nothing_of_truncation(name: str, run_python: Run) -> None:
    code = """
import os, sys
from sage_queue import SageQueue, SageQueueError, _native
q = SageQueue(sys.argv[1])
_native.unlink(q._handle)
if os.geteuid() == 0:
    os.setuid(65534)
os.closerange(3, 64)
try:
    q.get(timeout=0.5)
except SageQueueError as error:
    print(type(error).__name__, error.errno, error)
"""
    printed = run_python(code, name).stdout
    assert printed.startswith("QueueNoDescriptor 9 ") and "closed the file descriptor" in printed and "truncated" not in printed


WITHOUT_STANDARD_DESCRIPTORS = """
import faulthandler, fcntl, os, sys
out = fcntl.fcntl(1, fcntl.F_DUPFD, 20)
for number in range(3):
    os.close(number)
from sage_queue import SageQueue
jobs, q = SageQueue(), SageQueue(sys.argv[1])
q.put("important")
q.fileno()
for number in range(3):
    try:
        os.fstat(number)
        os.write(out, b"%d is taken " % number)
    except OSError:
        pass
try:
    os.write(2, b"WARNING " * 400)
except OSError:
    os.write(out, q.get(timeout=60).encode())
os._exit(0) if not q.close() and not jobs.close() else None
"""


def test_a_program_without_standard_descriptors_writes_no_warning_into_a_queue(name: str, run_python: Run) -> None:
    assert run_python(WITHOUT_STANDARD_DESCRIPTORS, name).stdout == "important"


@root_only
def test_workers_forked_after_the_service_gave_up_root_use_its_queues(open_directory: pathlib.Path, run_python: Run) -> None:
    code = """
import multiprocessing, os
import multiprocessing.popen_fork  # which may not be readable later
from sage_queue import SageQueue
def work(q, r):
    r.put(q.get(timeout=60) * 2)
if __name__ == "__main__":
    q, r = SageQueue(), SageQueue()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    workers = [multiprocessing.get_context("fork").Process(target=work, args=(q, r)) for _ in range(2)]
    for worker in workers: worker.start()
    q.put(21); q.put(22)
    print(sorted([r.get(timeout=60), r.get(timeout=60)]))
    for worker in workers: worker.join()
"""
    os.chmod(open_directory, 0o777)  # so that the last one may remove what root has made
    assert run_python(code).stdout == "[42, 44]\n"


# ---- directories that are not absolute ----


def test_references_and_removal_do_not_depend_on_the_working_directory(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queues").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGE_QUEUE_DIR", "queues")
    with SageQueue[str](name) as q:
        by_name = sage_queue.SageQueueRef(name)
        assert q.get_reference().directory == by_name.directory == str(tmp_path / "queues")
        monkeypatch.chdir("/")
        q.put("here")
        with q.get_reference().get_queue() as again, by_name.get_queue() as once_more:
            assert again.get(timeout=SOON) == "here"
            again.put("there")
            assert once_more.get(timeout=SOON) == "there"
    assert os.listdir(tmp_path / "queues") == []


# ---- what the system refuses ----


def test_a_refused_call_is_named_with_its_errno_and_what_is_likely(name: str, run_python: Run) -> None:
    code = """
import ctypes, os, resource, sys
from sage_queue import SageQueue, SageQueueError
most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
most = 1 << 26 if most == resource.RLIM_INFINITY else min(most, 1 << 26)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
if os.geteuid() == 0:
    os.setuid(65534)
if ctypes.CDLL(None, use_errno=True).mlockall(2):  # MCL_FUTURE
    print("skip"); raise SystemExit
try:
    SageQueue(sys.argv[1], capacity="64 MiB")
except SageQueueError as error:
    print(type(error).__name__, error)
"""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        os.chmod(directory, 0o777)
        printed = run_python(code, name, SAGE_QUEUE_DIR=directory).stdout
    if printed == "skip\n":
        pytest.skip("mlockall is not to be had here")
    assert printed.startswith("QueueNoMemory") and "mmap" in printed and "EAGAIN" in printed and "RLIMIT_MEMLOCK" in printed


FILTERED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

int fcntl64(int fd, int command, ...);
int fcntl(int fd, int command, ...)
{
    static int (*real)(int, int, ...);
    if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl64");
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (command == F_OFD_SETLK) {
        errno = atoi(getenv("REFUSE_WITH"));
        return -1;
    }
    return real(fd, command, argument);
}
"""


@pytest.mark.parametrize(
    "error, kind, likely",
    [(22, "QueueSystemError", "gVisor"), (1, "QueueAccessDenied", "seccomp"), (37, "QueueSystemError", "locks")],
)
def test_refused_locks_are_explained_and_no_other_user_is_blamed(
    name: str, run_python: Run, tmp_path: pathlib.Path, error: int, kind: str, likely: str
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here to refuse locks")
    source, library = tmp_path / "filter.c", tmp_path / "filter.so"
    body = FILTERED[FILTERED.index("int fcntl(int fd") :]
    source.write_text(FILTERED + body.replace("int fcntl(int fd", "int fcntl64(int fd"))
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    code = """
import sys
from sage_queue import SageQueue, SageQueueError
try:
    SageQueue(sys.argv[1])
except SageQueueError as error:
    print(type(error).__name__, error.errno, error)
"""
    printed = run_python(code, name, LD_PRELOAD=str(library), REFUSE_WITH=str(error)).stdout
    assert printed.startswith(f"{kind} {error} "), printed
    assert "fcntl(F_OFD_SETLK)" in printed and likely in printed and "another user" not in printed


def test_a_queue_of_another_layout_is_named_with_its_layout(name: str) -> None:
    with SageQueue[str](name) as q, SageQueue[str](name + "-swapped") as swapped:
        for path, at, value in ((path_of(q), 8, (77).to_bytes(4, sys.byteorder)), (path_of(swapped), 0, None)):
            with open(path, "r+b", buffering=0) as file:
                if value is None:
                    value = file.read(12)[7::-1] + (5).to_bytes(4, "big" if sys.byteorder == "little" else "little")
                file.seek(at)
                file.write(value)
        with pytest.raises(sage_queue.QueueVersionError, match="it has layout 77; this one reads layout [0-9]+"):
            sage_queue.open_queue(name)
        with pytest.raises(sage_queue.QueueVersionError, match="it has layout 5; .* another byte order"):
            sage_queue.open_queue(name + "-swapped")


# ---- what killed programs leave ----

KILLED_AGAIN_AND_AGAIN = """
import multiprocessing, os, signal, sys, time
from sage_queue import SageQueue
def work(q):
    while True: q.get()
if __name__ == "__main__":
    q = SageQueue()
    worker = multiprocessing.Process(target=work, args=(q,), daemon=True)
    worker.start()
    q.put(b"x" * 300_000)
    if sys.argv[1] == "killed":
        os.killpg(0, signal.SIGKILL)
"""


def test_a_crash_loop_leaves_nothing_after_the_next_start_s_end(queue_directory: pathlib.Path) -> None:
    def start(how: str) -> int:
        command = [sys.executable, "-c", KILLED_AGAIN_AND_AGAIN, how]
        return subprocess.run(command, start_new_session=True, timeout=SOON).returncode

    before = set(os.listdir(queue_directory))
    for _ in range(50 if LONG else 6):
        assert start("killed") == -signal.SIGKILL
        assert len(set(os.listdir(queue_directory)) - before) <= 2  # its own, and one whose worker was still dying
    until(lambda: start("whole") == 0 and set(os.listdir(queue_directory)) == before)


ENDS_BEFORE_ITS_WORKERS = """
import multiprocessing, os, sys, time
from sage_queue import SageQueue
def work(q):
    while True: q.get()
if __name__ == "__main__":
    how, context = sys.argv[1], multiprocessing.get_context(sys.argv[2])
    for _ in range(3):
        q = SageQueue()
        workers = [context.Process(target=work, args=(q,), daemon=True) for _ in range(2)]
        for worker in workers: worker.start()
        while q.get_stats()["participants"] < 3: time.sleep(0.01)
        for worker in workers:
            if how == "close": worker.terminate()
            if how == "kill": worker.kill()
        if how != "open": q.close()
        for worker in workers:
            if how in ("close", "kill"): worker.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how", ["close", "kill", "daemons", "open"])
def test_a_parent_that_closes_before_its_workers_are_gone_leaves_nothing_at_its_end(
    run_python: Run, how: str, method: str, tmp_path: pathlib.Path, queue_directory: pathlib.Path
) -> None:
    before = set(os.listdir(queue_directory))
    program = tmp_path / "program.py"
    program.write_text(ENDS_BEFORE_ITS_WORKERS)
    subprocess.run([sys.executable, str(program), how, method], check=True, timeout=SOON)
    assert set(os.listdir(queue_directory)) == before


OF_ANOTHER_FAMILY = """
import importlib, os, sys
family = importlib.import_module(sys.argv[1])
from sage_queue import SageQueue
told, tell = os.pipe()
def work(reference):
    q = reference.get_queue()
    q.put("x")
    os.read(told, 1)
if __name__ == "__main__":
    q = SageQueue()
    child = family.get_context("fork").Process(target=work, args=(q.get_reference(),))
    child.start()
    q.get(timeout=60)
    path = q.get_shared_memory_info()["shm_path"]
    q.close()  # the child is the last one
    os.write(tell, b"!")
    os.waitpid(child.pid, 0)
    print(os.path.exists(path))
"""


@pytest.mark.parametrize("family", ["multiprocessing", "cousin_of_multiprocessing", "billiard", "multiprocess"])
def test_children_of_every_family_leave_at_their_end(run_python: Run, tmp_path: pathlib.Path, family: str) -> None:
    if family == "cousin_of_multiprocessing":  # as multiprocess (pathos) is
        import multiprocessing

        shutil.copytree(os.path.dirname(multiprocessing.__file__), tmp_path / family)
    elif importlib.util.find_spec(family) is None:
        pytest.skip(f"{family} is not installed here")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    assert run_python(OF_ANOTHER_FAMILY, family, PYTHONPATH=path).stdout == "False\n"
