"""Across processes: fork, spawn, forkserver, pools, inheritance, and plain os.fork()."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pathlib
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from helpers import SOON, Run, finish, in_a_fork, until

import sage_queue
from sage_queue import SageQueue, SageQueueRef, ShutDown

def files(directory: pathlib.Path) -> int:
    return len(list(directory.iterdir()))


# ---- handing a queue over ----


def echo_queue(questions: SageQueue[Any], answers: SageQueue[Any]) -> None:
    answers.put((os.getpid(), questions.get(timeout=SOON)))


def echo_reference(questions: SageQueueRef, answers: SageQueueRef) -> None:
    with questions.get_queue() as q, answers.get_queue() as a:
        echo_queue(q, a)


def echo_json(questions: str, answers: str) -> None:
    echo_reference(SageQueueRef.from_json(questions), SageQueueRef.from_json(answers))


def echo_name(questions: str, answers: str) -> None:
    with sage_queue.open_queue(questions) as q, sage_queue.open_queue(answers) as a:
        echo_queue(q, a)


@pytest.mark.parametrize(
    ("target", "handed"),
    [
        (echo_queue, lambda q: q),
        (echo_reference, lambda q: q.get_reference()),
        (echo_json, lambda q: q.get_reference().to_json()),
        (echo_name, lambda q: q.name),
    ],
    ids=["queue", "reference", "JSON", "name"],
)
def test_a_child_uses_the_same_queue_however_it_was_handed_over(
    context: Any, name: str, target: Any, handed: Callable[[SageQueue[Any]], Any]
) -> None:
    with SageQueue[Any](name) as questions, SageQueue[Any](namespace="answers", name=name) as answers:
        child = context.Process(target=target, args=(handed(questions), handed(answers)))
        child.start()
        questions.put({"data": [1, 2, 3], "meta": "SAGE"})
        assert answers.get(timeout=SOON) == (child.pid, {"data": [1, 2, 3], "meta": "SAGE"})
        finish(child)
        assert answers.get_stats()["participants"] == 1


def test_a_queue_can_travel_through_a_queue(context: Any) -> None:
    with SageQueue[Any]() as road, SageQueue[Any]() as passenger:
        child = context.Process(target=greet_through, args=(road,))
        child.start()
        road.put(passenger)
        assert passenger.get(timeout=SOON) == "hello"
        finish(child)


def greet_through(road: SageQueue[Any]) -> None:
    with road.get(timeout=SOON) as passenger:
        passenger.put("hello")


def test_a_pools_workers_get_queues_and_references_as_arguments_and_results(context: Any) -> None:
    with SageQueue[Any]() as q, concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert sorted(pool.map(put_square, [(q, 1), (q, 2), (q.get_reference(), 3)])) == [1, 4, 9]
        assert sorted(q.get(timeout=SOON) for _ in range(3)) == [1, 4, 9]
        with pool.submit(same, q).result(SOON) as again:
            again.put("back")
        assert q.get(timeout=SOON) == "back"
        assert pool.submit(same, q.get_reference()).result(SOON) == q.get_reference()


def put_square(job: tuple[Any, int]) -> int:
    where, number = job
    q = where.get_queue() if isinstance(where, SageQueueRef) else where
    q.put(number * number)
    return number * number


def same(thing: Any) -> Any:
    return thing


def test_an_error_in_a_worker_arrives_as_itself(context: Any, name: str) -> None:
    with SageQueue[Any](name) as q:
        ref = q.get_reference()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(sage_queue.QueueNotFound, match=name) as caught:
            pool.submit(SageQueueRef.get_queue, ref).result(SOON)
        assert caught.value.code is not None


def test_an_unnamed_queue_is_reached_by_inheritance() -> None:
    with SageQueue[Any]() as q:
        child: Any = multiprocessing.get_context("fork").Process(target=lambda: q.put(os.getpid()))
        child.start()
        assert q.get(timeout=SOON) == child.pid
        finish(child)


# ---- many ----


def produce(q: SageQueue[Any], producer: int, count: int) -> None:
    for sequence in range(count):
        payload = b"%d:%d" % (producer, sequence) * (1 + sequence % 500)
        q.put((producer, sequence, payload, zlib.crc32(payload)))


def consume(q: SageQueue[Any], results: SageQueue[Any]) -> None:
    seen: list[tuple[int, int]] = []
    while True:
        try:
            producer, sequence, payload, checksum = q.get()
        except ShutDown:
            break
        assert zlib.crc32(payload) == checksum
        seen.append((producer, sequence))
    results.put(seen)


@pytest.mark.parametrize(
    ("method", "producers", "consumers", "maxsize"),
    [
        *(("fork", *counts, maxsize) for counts in ((1, 1), (4, 4), (3, 1), (1, 3)) for maxsize in (0, 1, 100)),
        ("spawn", 2, 2, 100),
        ("forkserver", 2, 2, 100),
    ],
)
def test_nothing_is_lost_doubled_or_out_of_order_between_processes(
    method: str, producers: int, consumers: int, maxsize: int
) -> None:
    context: Any = multiprocessing.get_context(method)
    each = 400 if maxsize == 1 else 4000
    with SageQueue[Any](maxsize=maxsize, capacity="1 MiB") as q, SageQueue[Any](capacity="16 MiB") as results:
        senders = [context.Process(target=produce, args=(q, number, each)) for number in range(producers)]
        receivers = [context.Process(target=consume, args=(q, results)) for _ in range(consumers)]
        for process in senders + receivers:
            process.start()
        finish(*senders)
        q.shutdown()
        finish(*receivers)
        seen = [results.get(timeout=SOON) for _ in range(consumers)]
        assert sorted(pair for part in seen for pair in part) == [(p, s) for p in range(producers) for s in range(each)]
        for part in seen:
            for producer in range(producers):
                sequences = [sequence for sender, sequence in part if sender == producer]
                assert sequences == sorted(sequences)
        assert q.get_stats()["participants"] == 1


def test_task_done_in_children_ends_join_in_the_parent(context: Any) -> None:
    with SageQueue[Any]() as q:
        for number in range(20):
            q.put(number)
        workers = [context.Process(target=work_off, args=(q,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        q.join()
        assert q.get_stats()["unfinished"] == 0 and q.empty()
        q.shutdown()
        finish(*workers)


def work_off(q: SageQueue[Any]) -> None:
    while True:
        try:
            q.get()
        except ShutDown:
            return
        q.task_done()


def test_tasks_that_a_killed_child_had_got_count_as_done(context: Any) -> None:
    with SageQueue[Any]() as q:
        q.put("work")
        child = context.Process(target=get_and_hang, args=(q,))
        child.start()
        until(q.empty)
        child.kill()
        child.join(SOON)
        q.join()


def get_and_hang(q: SageQueue[Any]) -> None:
    q.get()
    time.sleep(SOON)


# ---- fork, with everything as it is ----


def test_an_inherited_handle_works_in_the_child_and_goes_on_in_the_parent() -> None:
    with SageQueue[Any]() as q:
        q.put("to child")
        in_a_fork(lambda: q.put(q.get()), lambda: q.put("from child"))
        assert [q.get(), q.get()] == ["to child", "from child"]


def test_closing_an_inherited_handle_leaves_the_parents_open() -> None:
    with SageQueue[Any]() as q:
        q.put(1)

        def close_it() -> None:
            q.close()
            assert q.is_closed()
            with pytest.raises(sage_queue.QueueClosed):
                q.get()

        in_a_fork(close_it)
        assert not q.is_closed()
        assert q.get() == 1


def test_a_handle_that_was_closed_before_the_fork_is_closed_in_the_child() -> None:
    q = SageQueue[Any]()
    q.close()

    def use() -> None:
        with pytest.raises(sage_queue.QueueClosed):
            q.put(1)

    in_a_fork(use)


def test_a_fork_while_other_threads_wait_does_not_stop_the_child_or_them() -> None:
    with SageQueue[Any]() as q, SageQueue[Any]() as busy:
        got: list[Any] = []
        threads = [threading.Thread(target=lambda: got.append(q.get())) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: q.get_stats()["sleeps"] >= 3)

        def use() -> None:
            busy.put("mine")
            assert busy.get() == "mine"
            for number in range(3):
                q.put(number)
            q.close()

        in_a_fork(use)
        for thread in threads:
            thread.join(SOON)
        assert sorted(got) == [0, 1, 2]


def test_forking_again_and_again_under_load_harms_nothing() -> None:
    with SageQueue[Any](capacity="1 MiB") as q:
        stop = threading.Event()

        def traffic() -> None:
            while not stop.is_set():
                q.put(b"x" * 5000)
                q.get()

        thread = threading.Thread(target=traffic)
        thread.start()
        for number in range(30):
            in_a_fork(lambda number=number: q.put(("child", number)))  # type: ignore[misc]
        stop.set()
        thread.join(SOON)
        rest = []
        while not q.empty():
            rest.append(q.get())
        stats = q.get_stats()
        assert stats["puts"] == stats["gets"]
        with pytest.raises(sage_queue.Empty):
            q.get(timeout=0.5)  # who waits cleans up after the children, who left without a word
        assert q.get_stats()["participants"] == 1


def test_grandchildren_use_the_queue_too() -> None:
    with SageQueue[Any]() as q:
        in_a_fork(lambda: q.put("child"), lambda: in_a_fork(lambda: q.put("grandchild")), lambda: q.put("child again"))
        assert [q.get(), q.get(), q.get()] == ["child", "grandchild", "child again"]


# ---- leaving ----


kept: list[SageQueue[Any]] = []


def open_and_leave(name: str, how: str) -> None:
    kept.append(SageQueue(name, auto_cleanup=True))
    kept[0].put("something")
    if how == "sys.exit":
        sys.exit(0)
    if how == "error":
        sys.stderr = open(os.devnull, "w")
        raise RuntimeError


@pytest.mark.parametrize("how", ["return", "sys.exit", "error"])
def test_a_child_of_multiprocessing_closes_its_queues_when_it_ends(
    context: Any, name: str, how: str, queue_directory: pathlib.Path
) -> None:
    child = context.Process(target=open_and_leave, args=(name, how))
    child.start()
    child.join(SOON)
    assert child.exitcode == (1 if how == "error" else 0)
    assert files(queue_directory) == 0


def test_a_child_that_inherits_the_only_queue_removes_it_when_its_parent_left_first(
    name: str, run_python: Run, queue_directory: pathlib.Path
) -> None:
    code = """
import multiprocessing, os, sys, time
from sage_queue import SageQueue
def child(q, parent):
    while os.getppid() == parent: time.sleep(0.01)
    q.put(1); q.get()
if __name__ == "__main__":
    q = SageQueue(sys.argv[1])
    multiprocessing.get_context("fork").Process(target=child, args=(q, os.getpid())).start()
    q.close()
    os._exit(0)
"""
    run_python(code, name)
    until(lambda: files(queue_directory) == 0)


def test_a_child_still_owning_messages_of_the_queue_leaves_them_to_the_parent(context: Any) -> None:
    with SageQueue[Any]() as q:
        child = context.Process(target=q_put, args=(q, ["a", "b"]))
        child.start()
        finish(child)
        assert [q.get(), q.get()] == ["a", "b"]


def q_put(q: SageQueue[Any], items: list[Any]) -> None:
    for item in items:
        q.put(item)


@pytest.mark.parametrize("waiting", ["get", "put"])
def test_the_death_of_a_waiting_process_harms_nobody(context: Any, waiting: str) -> None:
    with SageQueue[Any](maxsize=1) as q:
        if waiting == "put":
            q.put("first")
        children = [context.Process(target=wait_in, args=(q, waiting)) for _ in range(3)]
        for child in children:
            child.start()
        until(lambda: q.get_stats()["sleeps"] >= 3)
        for child in children:
            child.kill()
            child.join(SOON)
        if waiting == "get":
            q.put("first")
        assert q.get(timeout=SOON) == "first"
        q.put("second", timeout=SOON)
        assert q.get(timeout=SOON) == "second"


def wait_in(q: SageQueue[Any], what: str) -> None:
    q.get() if what == "get" else q.put("from the dead")
