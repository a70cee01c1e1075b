"""From a reference back to exactly that queue, in this process and by name; other processes are in test_processes.py."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, SageQueueRef


def test_a_reference_says_what_is_fixed_about_the_queue(name: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[int](name, 10, True, namespace="job", capacity="64 KiB") as q:
        ref = q.get_reference()
        assert ref.name == q.name == f"job/{name}"
        assert (ref.maxsize, ref.size, ref.capacity) == (10, 10, 65536) == (q.maxsize, q.maxsize, q.capacity)
        assert (ref.auto_cleanup, ref.serializer, ref.creator_pid) == (True, "pickle", os.getpid())
        assert ref.directory == str(queue_directory)
        assert ref == q.get_reference()


@pytest.mark.parametrize(
    "trip",
    [
        lambda q: q.get_reference().get_queue(),
        lambda q: pickle.loads(pickle.dumps(q.get_reference())).get_queue(),
        lambda q: SageQueueRef.from_json(q.get_reference().to_json()).get_queue(),
        lambda q: pickle.loads(pickle.dumps(q)),
        lambda q: copy.copy(q),
        lambda q: copy.deepcopy(q),
    ],
    ids=["reference", "pickled reference", "JSON", "pickled queue", "copy", "deep copy"],
)
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_a_reference_leads_back_to_the_same_queue(name: str, trip: Callable[[SageQueue[Any]], SageQueue[Any]], named: bool) -> None:
    with SageQueue[Any](name if named else None, 7, namespace="job" if named else None, capacity=8192) as q:
        q.put("there")
        with trip(q) as again:
            assert again is not q
            assert (again.name, again.maxsize, again.capacity, again.serializer) == (q.name, 7, 8192, "pickle")
            assert again.get_reference() == q.get_reference()
            assert again.get() == "there"
            again.put("back")
        assert q.get() == "back"


def test_a_reference_keeps_the_serializer() -> None:
    with SageQueue[bytes](serializer="raw") as q, q.get_reference().get_queue() as again:
        q.put(b"\x00\xff")
        assert again.get() == b"\x00\xff"


def test_a_reference_works_where_the_directory_is_another_one(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with SageQueue[int](name) as q:
        q.put(1)
        monkeypatch.setenv("SAGE_QUEUE_DIR", str(tmp_path))
        with pytest.raises(sage_queue.QueueNotFound):
            sage_queue.open_queue(name)
        with q.get_reference().get_queue() as again:
            assert again.get() == 1


def test_a_reference_outlives_the_handle_it_came_from(name: str) -> None:
    q = SageQueue[int](name)
    q.put(1)
    ref = q.get_reference()
    q.close()
    assert q.get_reference() == ref
    with ref.get_queue() as again:
        assert again.get() == 1


def test_a_reference_to_a_queue_that_is_gone_says_so(name: str) -> None:
    with SageQueue[int](name) as q:
        ref = q.get_reference()
    with pytest.raises(sage_queue.QueueNotFound, match=f"there is no queue '{name}'"):
        ref.get_queue()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(q))


def test_a_reference_never_leads_to_a_later_queue_of_the_same_name(name: str) -> None:
    with SageQueue[int](name) as first:
        ref = first.get_reference()
        first.destroy()
    with SageQueue[int](name) as second:
        with pytest.raises(sage_queue.QueueNotFound, match=f"queue '{name}' is gone, and another one .* new reference"):
            ref.get_queue()
        assert second.get_reference() != ref
        assert second.empty()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot_id": "00000000-0000"}, {"host": "elsewhere", "directory": "/none"}])
def test_a_reference_from_another_machine_names_both(name: str, changes: dict[str, str]) -> None:
    with SageQueue[int](name) as q:
        here = q.get_reference()
    there = SageQueueRef.from_dict({**here.to_dict(), **changes})
    with pytest.raises(sage_queue.QueueNotLocal) as caught:
        there.get_queue()
    assert repr(there.host) in str(caught.value) and repr(here.host) in str(caught.value)
    assert isinstance(caught.value, sage_queue.QueueNotFound) and caught.value.code is not None


def test_what_decides_is_whether_the_memory_is_there_and_no_host_name(name: str) -> None:
    with SageQueue[int](name) as q:
        renamed = SageQueueRef.from_dict({**q.get_reference().to_dict(), "host": "before the renaming", "boot_id": "unknown"})
        q.put(1)
        with renamed.get_queue() as again:
            assert again.get() == 1


def test_a_reference_with_an_unknown_serializer_is_refused(name: str) -> None:
    with SageQueue[int](name) as q:
        ref = SageQueueRef.from_dict({**q.get_reference().to_dict(), "serializer": "later"})
        with pytest.raises(ValueError, match="serializer='later' is not known"):
            ref.get_queue()


# ---- names ----


@pytest.mark.parametrize(
    "odd",
    [
        "a",
        "with/slash",
        "/leading",
        "..",
        ".",
        "../../etc/passwd",
        "double__underscore__service_response_node",
        "space and\ttab\nnewline",
        "ünïcödé-名前-🚀",
        "percent%2Fsign",
        "~tilde~",
        "UPPER",
        "upper",
        "x" * 300,
        "x" * 299 + "y",
        "ü" * 512,
        "n" * 1024,
    ],
)
def test_any_name_works_and_is_kept_whole(odd: str, queue_directory: pathlib.Path) -> None:
    with SageQueue[str](odd) as q:
        assert q.name == odd
        assert len(list(queue_directory.iterdir())) == 1
        q.put("here")
        with sage_queue.open_queue(odd) as again:
            assert again.name == odd
            assert again.get() == "here"
        assert pickle.loads(pickle.dumps(q)).name == odd
        assert sage_queue.destroy_queue(odd)
        assert list(queue_directory.iterdir()) == []


def test_names_that_look_alike_are_different_queues() -> None:
    names = ["a/b", "a%2Fb", "a_b", "A/b", "x" * 300, "x" * 301, "x" * 299 + "y"]
    queues = [SageQueue[str](each) for each in names]
    for q in queues:
        q.put(q.name)
    assert [q.get() for q in queues] == names
    for q in queues:
        q.close()


def test_namespaces_keep_equal_names_apart(name: str) -> None:
    with SageQueue[int](name, namespace="a") as a, SageQueue[int](name, namespace="b") as b, SageQueue[int](name) as plain:
        a.put(1)
        assert b.empty() and plain.empty()
        with SageQueue[int](f"a/{name}") as same:
            assert same.get() == 1
        assert sage_queue.destroy_queue(name, namespace="a")
        assert not sage_queue.destroy_queue(name, namespace="a")
        assert [ref.name for ref in sage_queue.list_queues("b")] == [f"b/{name}"]
        assert {ref.name for ref in sage_queue.list_queues()} == {f"b/{name}", name}


# ---- queues by name ----


def test_create_open_list_and_destroy_work_by_name(name: str) -> None:
    with pytest.raises(sage_queue.QueueNotFound):
        sage_queue.open_queue(name)
    with sage_queue.create_queue(name, 5, capacity=8192) as q:
        assert (q.name, q.maxsize, q.capacity) == (name, 5, 8192)
        with sage_queue.create_queue(name) as same:
            assert same.maxsize == 5
        assert sage_queue.list_queues() == [q.get_reference()]
        assert sage_queue.destroy_queue(name) is True
        assert sage_queue.destroy_queue(name) is False
        assert sage_queue.list_queues() == []
        q.put(1)  # who is attached goes on
        assert q.get() == 1


def test_listing_shows_every_serializer_and_disturbs_nothing(name: str) -> None:
    with SageQueue[bytes](name, serializer="raw") as q:
        q.put(b"1")
        before = q.get_stats()
        assert [ref.serializer for ref in sage_queue.list_queues()] == ["raw"]
        assert q.get_stats() == before
        assert q.get() == b"1"


def test_a_queue_can_be_parametrized_with_the_type_of_its_items() -> None:
    assert SageQueue[int].__origin__ is SageQueue

    class Numbers(SageQueue[int]):
        pass

    with Numbers() as q:
        q.put(1)
        assert q.get() == 1
        assert repr(q).startswith("<Numbers 'anonymous-")
