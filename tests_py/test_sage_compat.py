"""The interface of SAGE's first queue, as SAGE's code uses it: constructor, references, functions by name, manager, statistics.

Its semantics where they made sense; what was a defect there is in test_original_defects.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import pickle
import pwd
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, SageQueueManager, SageQueueRef
from sage_queue._address import ANY_ID

SOON = 30.0
Run = Callable[..., subprocess.CompletedProcess[str]]
LOGIN = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(autouse=True)
def no_sage_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGE_USER", raising=False)


# ---- the constructor ----


def test_the_constructor_takes_the_first_queues_keywords(name: str) -> None:
    q = SageQueue[int](name=name, maxsize=10, auto_cleanup=True, namespace="job", enable_multi_tenant=False)
    with q:
        assert (q.name, q.maxsize, q.auto_cleanup) == (f"job/{name}", 10, True)
    with SageQueue[int](name, 10) as q:
        assert (q.name, q.maxsize, q.auto_cleanup) == (name, 10, False)


@pytest.mark.parametrize("enable", [None, False])
def test_a_name_is_its_own_unless_several_users_are_asked_for(name: str, enable: bool | None) -> None:
    with SageQueue[int](name, enable_multi_tenant=enable) as q:
        assert q.name == name
    with SageQueue[int](name, namespace="x", enable_multi_tenant=enable) as q:
        assert q.name == f"x/{name}"


def test_with_several_users_the_user_stands_before_the_namespace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SageQueue[int](name, enable_multi_tenant=True) as q:
        assert q.name == f"{LOGIN}/{name}"
    monkeypatch.setenv("SAGE_USER", "ann")
    with SageQueue[int](name, enable_multi_tenant=True) as q:
        assert q.name == f"ann/{name}"
    with SageQueue[int](name, namespace="job/7", enable_multi_tenant=True) as q:
        assert q.name == f"ann/job/7/{name}"


def test_two_users_of_one_name_do_not_meet_and_one_user_meets_himself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    anns = SageQueue[str](name, enable_multi_tenant=True)
    monkeypatch.setenv("SAGE_USER", "bob")
    bobs = SageQueue[str](name, enable_multi_tenant=True)
    with anns, bobs:
        anns.put("Ann's")
        assert bobs.empty()
        monkeypatch.setenv("SAGE_USER", "ann")
        with SageQueue[str](name, enable_multi_tenant=True) as hers, sage_queue.open_queue(name, enable_multi_tenant=True) as too:
            assert hers.name == too.name == anns.name
            assert hers.get() == "Ann's"
        assert sage_queue.destroy_queue(name, enable_multi_tenant=True)
        assert not sage_queue.destroy_queue(name, enable_multi_tenant=True)
        assert [ref.name for ref in sage_queue.list_queues()] == [f"bob/{name}"]


def test_a_user_whose_name_holds_a_slash_would_be_in_another_users_namespace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_USER", "ann/job")
    with pytest.raises(ValueError, match="SAGE_USER='ann/job' holds a slash"):
        SageQueue(name, enable_multi_tenant=True)


def test_a_queue_without_a_name_has_no_users() -> None:
    with pytest.raises(ValueError, match="give it a name"):
        SageQueue(enable_multi_tenant=True)


def test_the_dead_letter_queue_is_the_same_users(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    with SageQueue[int](name, enable_multi_tenant=True, max_attempts=3, dead_letter="dead") as q:
        assert q.dead_letter == "ann/dead"


def test_a_name_means_the_same_in_every_process(name: str, run_python: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    with SageQueue[str](name, namespace="job", enable_multi_tenant=True) as q:
        code = """
import sys
from sage_queue import SageQueue
SageQueue(sys.argv[1], namespace="job", enable_multi_tenant=True).put("by name")
"""
        run_python(code, name)
        assert q.get(timeout=SOON) == "by name"
        with pickle.loads(pickle.dumps(q)) as again:  # the name is not prefixed again
            assert again.name == q.name


def test_attributes_can_be_assigned_and_do_not_travel(name: str) -> None:
    with SageQueue[int](name) as q:
        q.logger = threading.Lock()  # type: ignore[attr-defined]  # SAGE's tasks assign their logger; a lock cannot be pickled
        with pickle.loads(pickle.dumps(q)) as again:
            assert not hasattr(again, "logger")


# ---- messages of errors, which SAGE's code matches ----


def test_the_messages_of_errors_are_the_first_queues(name: str) -> None:
    q = SageQueue[Any](name, maxsize=1)
    with pytest.raises(queue.Empty, match="^Queue is empty$"):
        q.get_nowait()
    with pytest.raises(queue.Empty, match="^Get operation timed out$"):
        q.get(timeout=0.01)
    with pytest.raises(ValueError, match="^Failed to serialize item: "):
        q.put(lambda: None)
    q.put(1)
    with pytest.raises(queue.Full, match="^Queue is full$"):
        q.put_nowait(2)
    with pytest.raises(queue.Full, match="^Put operation timed out$"):
        q.put(2, timeout=0.01)
    q.get()
    q.close()
    for call in (q.get, lambda: q.put(1)):
        with pytest.raises(RuntimeError, match="^Queue is closed$"):
            call()
    assert q.is_closed()


# ---- references, in both forms ----


def test_a_reference_of_a_living_queue_has_the_first_ones_attributes(name: str) -> None:
    with SageQueue[int](name, 10, auto_cleanup=True) as q:
        ref = q.get_reference()
        assert (ref.name, ref.queue_name, ref.size, ref.maxsize) == (name, name, 10, 10)
        assert (ref.auto_cleanup, ref.creator_pid) == (True, os.getpid())
        assert ref.create_if_not_exists is False  # it leads to this queue, and never to a later one
        assert repr(ref) == f"SageQueueRef(name={name!r}, size=10, creator_pid={os.getpid()})"


@pytest.mark.parametrize(
    "make",
    [
        lambda name: SageQueueRef(name, 10, True),
        lambda name: SageQueueRef(name, 10),
        lambda name: SageQueueRef(name, maxsize=10),
        lambda name: SageQueueRef(queue_name=name, maxsize=10, create_if_not_exists=True),
        lambda name: SageQueueRef(name=name, maxsize=10),  # type: ignore[call-overload]
    ],
    ids=["positions", "default", "one keyword", "keywords", "name"],
)
def test_a_reference_by_name_makes_the_queue_when_it_is_needed(name: str, make: Callable[[str], SageQueueRef]) -> None:
    ref = make(name)
    assert (ref.name, ref.queue_name, ref.size, ref.maxsize, ref.create_if_not_exists) == (name, name, 10, 10, True)
    assert (ref.id, ref.creator_pid) == (ANY_ID, os.getpid())
    assert sage_queue.list_queues() == []
    with ref.get_queue() as q, ref.get_queue() as again:
        assert (q.name, q.maxsize, q.capacity, q.arena) == (name, 10, 4 << 20, 64 << 20)
        q.put(1)
        assert again.get() == 1
        assert q.get_reference() != ref


def test_a_reference_by_name_leads_to_the_queue_that_is_there(name: str) -> None:
    with SageQueue[int](name, 3) as q:
        for ref in (SageQueueRef(name, 10), SageQueueRef(name, 10, False)):
            with ref.get_queue() as same:
                assert same.get_reference() == q.get_reference()
                assert same.maxsize == 3


def test_a_reference_by_name_makes_nothing_unless_it_may(name: str, queue_directory: pathlib.Path) -> None:
    ref = SageQueueRef(queue_name=name, maxsize=10, create_if_not_exists=False)
    with pytest.raises(FileNotFoundError):
        ref.get_queue()
    assert list(queue_directory.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_reference_by_name_travels_and_leads_to_the_makers_directory(
    name: str, create: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    ref = SageQueueRef(name, 10, create)
    for again in (pickle.loads(pickle.dumps(ref)), SageQueueRef.from_json(ref.to_json()), SageQueueRef.from_dict(ref.to_dict())):
        assert type(again) is SageQueueRef and again == ref
    with SageQueue[str](name, 10) as q:
        monkeypatch.setenv("SAGE_QUEUE_DIR", str(tmp_path))
        with pickle.loads(pickle.dumps(ref)).get_queue() as there:
            there.put("here")
        assert q.get(timeout=SOON) == "here"
        assert list(tmp_path.iterdir()) == []


def test_a_reference_by_name_from_another_machine_makes_no_queue_here(name: str, queue_directory: pathlib.Path) -> None:
    there = SageQueueRef.from_dict({**SageQueueRef(name, 10).to_dict(), "host": "elsewhere"})
    with pytest.raises(sage_queue.QueueNotLocal, match="'elsewhere'"):
        there.get_queue()
    assert list(queue_directory.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fields", "error"),
    [
        (("", 10), {}, ValueError),
        ((1, 10), {}, TypeError),
        (("q", -1), {}, ValueError),
        (("q", "many"), {}, ValueError),  # a str in the second place is an id
        (("q", 1.5), {}, TypeError),
        ((), {"maxsize": 10}, TypeError),
        (("q",), {"name": "q"}, TypeError),
        (("q",), {"surprise": 1}, TypeError),
    ],
)
def test_a_reference_by_name_that_makes_no_sense_is_an_error(arguments: Any, fields: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SageQueueRef(*arguments, **fields)


def test_only_a_name_can_be_made_again(name: str) -> None:
    with SageQueue[int](name) as q, pytest.raises(ValueError, match="cannot be made again"):
        SageQueueRef.from_dict({**q.get_reference().to_dict(), "create_if_not_exists": True})


def _answer(ref: SageQueueRef) -> None:
    with ref.get_queue() as q:
        q.put(os.getpid())


def test_a_child_that_comes_first_makes_the_queue_for_its_parent(name: str, context: Any) -> None:
    ref = SageQueueRef(name, 10, True)
    child = context.Process(target=_answer, args=(ref,))
    child.start()
    child.join(SOON)
    assert child.exitcode == 0
    with ref.get_queue() as q:
        assert q.get(timeout=SOON) == child.pid


# ---- functions by name ----


def test_creating_what_is_there_opens_it_and_opening_what_is_not_is_an_error(name: str) -> None:
    with sage_queue.create_queue(name, 10) as q, sage_queue.create_queue(name=name, maxsize=10) as same:
        assert same.get_reference() == q.get_reference()
    with pytest.raises(FileNotFoundError):
        sage_queue.open_queue(name)
    assert sage_queue.destroy_queue(name) is False


def test_listing_tells_everything_as_data(name: str, queue_directory: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    with SageQueue[int](name, 7, namespace="a/b") as q:
        q.put(1)
        (row,) = sage_queue.list_all_sage_queues()
        (file,) = queue_directory.iterdir()
        used = row.pop("used_bytes")
        assert row == {
            "name": f"a/b/{name}",
            "original_name": name,
            "namespace": "a/b",
            "pid": os.getpid(),
            "owner": LOGIN,
            "size": file.stat().st_size,
            "items": 1,
            "maxsize": 7,
            "status": "Running",
            "file": str(file),
        }
        assert 0 < used <= file.stat().st_size
        assert q.get_stats()["ref_count"] == 1
    assert [row["status"] for row in sage_queue.list_all_sage_queues()] == ["Dead"]
    assert json.loads(json.dumps(sage_queue.list_all_sage_queues()))
    assert sage_queue.destroy_queue(f"a/b/{name}")
    assert sage_queue.list_all_sage_queues() == []
    assert capfd.readouterr() == ("", "")


def test_listing_shows_what_cannot_be_opened(name: str, queue_directory: pathlib.Path) -> None:
    (queue_directory / f"ringbuf.{name}").write_bytes(bytes(8192))
    (row,) = sage_queue.list_all_sage_queues()
    assert (row["name"], row["namespace"], row["status"], row["pid"], row["size"]) == (name, None, "Unknown", 0, 8192)
    assert sage_queue.destroy_queue(name)


def _leave(name: str, run_python: Run, *, full: bool = False, **options: Any) -> None:
    """A process that is killed while it has the queue."""
    code = f"""
import os, signal, sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1], 5, **{options!r})
if {full!r}: q.put(1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(code, name, check=False).returncode == -signal.SIGKILL


def test_cleaning_up_removes_what_the_dead_left_and_nobody_wants(
    name: str, run_python: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    _leave(f"{name}-empty", run_python)
    _leave(f"{name}-full", run_python, full=True)
    with SageQueue[int](f"{name}-mine") as mine:
        mine.put(1)
        assert sage_queue.cleanup_invalid_queues() == 1
        assert sage_queue.cleanup_invalid_queues() == 0
        assert {ref.name for ref in sage_queue.list_queues()} == {f"{name}-full", f"{name}-mine"}
        assert mine.get() == 1
    with sage_queue.open_queue(f"{name}-full") as q:
        assert q.get() == 1
    assert capfd.readouterr() == ("", "")


def test_cleaning_up_for_a_user_takes_his_queues_and_messages_only_with_force(
    name: str, run_python: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    _leave("ann/empty", run_python)
    _leave("ann/full", run_python, full=True)
    _leave("ann/persistent", run_python, persistent=True)
    _leave("bob/full", run_python, full=True)
    _leave("annabel", run_python, full=True)
    with SageQueue[int]("used", enable_multi_tenant=True) as used:
        used.put(1)
        assert sage_queue.cleanup_user_queues() == 1
        assert {ref.name for ref in sage_queue.list_queues()} == {"ann/full", "ann/persistent", "ann/used", "bob/full", "annabel"}
        assert sage_queue.cleanup_user_queues(force=True) == 2
        assert {ref.name for ref in sage_queue.list_queues()} == {"ann/used", "bob/full", "annabel"}
        assert sage_queue.cleanup_user_queues("bob", force=True) == 1
        assert sage_queue.cleanup_user_queues("carol", force=True) == 0
        assert used.get() == 1
    assert sage_queue.cleanup_user_queues(LOGIN, force=True) == 1  # the file of "annabel" is this user's
    assert sage_queue.list_queues() == []
    assert capfd.readouterr() == ("", "")


def test_cleaning_up_with_force_never_touches_the_queue_of_a_stopped_process(name: str, run_python: Run) -> None:
    code = """
import sys
from sage_queue import SageQueue
q = SageQueue(sys.argv[1]); q.put(1); print(1, flush=True); sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == b"1\n"
        child.send_signal(signal.SIGSTOP)
        assert sage_queue.cleanup_user_queues(force=True) == sage_queue.cleanup_invalid_queues() == 0
        with sage_queue.open_queue(name) as q:
            assert q.get() == 1
    finally:
        child.send_signal(signal.SIGCONT)
        child.communicate(timeout=SOON)


def test_cleaning_up_with_force_leaves_what_is_damaged(name: str, queue_directory: pathlib.Path) -> None:
    (queue_directory / f"ringbuf.{name}").write_bytes(bytes(8192))
    assert sage_queue.cleanup_user_queues(LOGIN, force=True) == sage_queue.cleanup_invalid_queues() == 0
    assert sage_queue.destroy_queue(name)


# ---- the manager ----


def test_a_manager_gives_one_handle_for_a_name(name: str) -> None:
    with SageQueueManager() as manager:
        q = manager.create_queue(name, maxsize=10)
        assert manager.create_queue(name) is manager.create_queue(name, 20) is manager.get_queue(name) is q
        assert (q.name, q.maxsize) == (name, 10)
        q.put(1)
        assert manager.get_queue(name).get() == 1


def test_a_manager_knows_only_its_own_queues(name: str) -> None:
    with SageQueueManager() as manager, SageQueue[int](name):
        with pytest.raises(KeyError, match=name):
            manager.get_queue(name)
        manager.create_queue(name)
        assert manager.get_queue(name).name == name


@pytest.mark.parametrize(
    ("maxsize", "error"), [(-1, ValueError), ("10", TypeError), (1.5, TypeError), (None, TypeError), (True, TypeError)]
)
def test_a_manager_refuses_a_maxsize_that_makes_no_sense_also_for_a_queue_it_has(
    name: str, maxsize: Any, error: type[Exception]
) -> None:
    with SageQueueManager() as manager:
        with pytest.raises(error):
            manager.create_queue(name, maxsize)
        with pytest.raises(KeyError):
            manager.get_queue(name)
        manager.create_queue(name)
        with pytest.raises(error):
            manager.create_queue(name, maxsize=maxsize)


@pytest.mark.parametrize(("bad", "error"), [("", ValueError), (None, TypeError), (1, TypeError)])
def test_a_manager_needs_a_name(bad: Any, error: type[Exception]) -> None:
    with SageQueueManager() as manager, pytest.raises(error):
        manager.create_queue(bad)


def test_a_manager_can_be_used_after_it_closed_everything(name: str, queue_directory: pathlib.Path) -> None:
    manager = SageQueueManager()
    manager.cleanup_all()
    queues = [manager.create_queue(f"{name}-{number}") for number in range(5)]
    manager.cleanup_all()
    manager.cleanup_all()
    assert all(q.is_closed() for q in queues)
    assert list(queue_directory.iterdir()) == []
    with pytest.raises(KeyError):
        manager.get_queue(f"{name}-0")
    again = manager.create_queue(f"{name}-0")
    assert again is not queues[0] and again.empty()
    manager.cleanup_all()


def test_a_manager_forgets_a_queue_that_its_user_closed(name: str) -> None:
    with SageQueueManager() as manager:
        manager.create_queue(name).close()
        with pytest.raises(KeyError):
            manager.get_queue(name)
        assert not manager.create_queue(name).is_closed()


def test_a_managers_names_are_relative_to_its_namespace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    with SageQueueManager("job") as plain, SageQueueManager("job", enable_multi_tenant=True) as hers:
        assert (plain.create_queue(name).name, hers.create_queue(name, 5).name) == (f"job/{name}", f"ann/job/{name}")
        assert (plain.get_queue(name).maxsize, hers.get_queue(name).maxsize) == (0, 5)


def test_threads_that_ask_a_manager_at_once_get_one_queue(name: str) -> None:
    with SageQueueManager() as manager:
        got: list[Any] = []
        start = threading.Barrier(8)

        def ask() -> None:
            start.wait()
            got.append(manager.create_queue(name))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 8 and len({id(q) for q in got}) == 1
        assert got[0].get_stats()["ref_count"] == 1


def _use_manager(manager: SageQueueManager, name: str) -> None:
    manager.get_queue(name).put("from the child")
    manager.create_queue(f"{name}-own")
    manager.cleanup_all()


def test_a_forked_child_has_its_own_manager(name: str) -> None:
    with SageQueueManager() as manager:
        q = manager.create_queue(name)
        child = multiprocessing.get_context("fork").Process(target=_use_manager, args=(manager, name))
        child.start()
        child.join(SOON)
        assert child.exitcode == 0
        assert not q.is_closed()
        assert q.get(timeout=SOON) == "from the child"


# ---- statistics and where it is ----


def test_the_statistics_have_the_first_queues_keys(name: str) -> None:
    with SageQueue[bytes](name, serializer="raw", capacity="64 KiB") as q:
        q.put(b"12345")
        q.put(b"678")
        q.get()
        stats = q.get_stats()
        assert (stats["buffer_size"], stats["readers"], stats["writers"], stats["ref_count"]) == (65536, 1, 1, 1)
        assert (stats["total_bytes_written"], stats["total_bytes_read"]) == (8, 5)
        assert stats["available_read"] + stats["available_write"] == 65536
        assert 0 < stats["utilization"] < 1
        q.get()


def test_statistics_begin_again_for_this_handle_only(name: str) -> None:
    with SageQueue[bytes](name, serializer="raw") as q, SageQueue[bytes](name, serializer="raw") as other:
        q.put(b"12345")
        q.put(b"678")
        q.get()
        q.reset_stats()
        stats = q.get_stats()
        assert [stats[key] for key in ("puts", "gets", "bytes_put", "bytes_got")] == [0, 0, 0, 0]
        assert (stats["total_bytes_written"], stats["total_bytes_read"], stats["items"], q.qsize()) == (0, 0, 1, 1)
        assert other.get_stats()["total_bytes_written"] == 8
        other.put(b"90")
        assert other.get() == b"678"
        assert (q.get_stats()["total_bytes_written"], q.get_stats()["total_bytes_read"]) == (2, 3)
        q.reset_stats()
        assert q.get_stats()["total_bytes_written"] == 0
        assert q.get() == b"90"


def test_statistics_that_begin_again_do_not_change_what_full_means() -> None:
    with SageQueue[bytes](serializer="raw", capacity="4 KiB", arena=0) as q:
        while not q.full():
            q.put_nowait(bytes(300))
        q.reset_stats()
        assert q.full()


def test_the_shared_memory_info_has_the_first_queues_keys(
    name: str, queue_directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGE_USER", "ann")
    with SageQueue[int](name, namespace="job", auto_cleanup=True, enable_multi_tenant=True) as q:
        (file,) = queue_directory.iterdir()
        assert q.get_shared_memory_info() == {
            "original_name": name,
            "namespaced_name": f"ann/job/{name}",
            "namespace": "job",
            "multi_tenant_enabled": True,
            "auto_cleanup": True,
            "shm_path": str(file),
        }
        with q.get_reference().get_queue() as again:
            info = again.get_shared_memory_info()
            assert (info["original_name"], info["namespace"], info["shm_path"]) == (q.name, None, str(file))
    with SageQueue[int]() as q:
        assert q.get_shared_memory_info()["original_name"] == q.name


# ---- manners ----


def test_all_of_it_is_silent_and_leaves_signal_handlers_alone_also_in_a_thread(run_python: Run) -> None:
    code = """
import signal, threading
before = [signal.getsignal(number) for number in signal.valid_signals()]
import sage_queue
from sage_queue import SageQueue, SageQueueManager, SageQueueRef
def use():
    manager = SageQueueManager(enable_multi_tenant=True)
    q = manager.create_queue("manners", maxsize=10)
    q.logger = None
    q.put(1)
    sage_queue.list_all_sage_queues(); q.get_stats(); q.reset_stats(); q.get_shared_memory_info(); repr(q); repr(manager)
    with SageQueueRef("by-name", 10, True).get_queue() as named: named.put(2); named.get()
    q.get()
    manager.cleanup_all()
    sage_queue.cleanup_invalid_queues(); sage_queue.cleanup_user_queues(force=True)
    done.append(True)
done = []
thread = threading.Thread(target=use); thread.start(); thread.join()
assert done
assert before == [signal.getsignal(number) for number in signal.valid_signals()]
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("", "")
