"""Every way to start a process that Python programs use: queues and references go in and come out, and no item is lost.

multiprocessing.Process, concurrent.futures, multiprocessing.Pool (each with fork, spawn and forkserver), loky, joblib on top of
it, and torch's start.  Each is a Way: call a function in another process, map one over several processes, and let a process die.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess, ForkServerProcess, SpawnProcess
from typing import Any

import pytest
from conftest import START_METHODS
from helpers import SOON, finish, until

import sage_queue
from sage_queue import SageQueue, SageQueueRef, ShutDown

WORKERS = 4


# ---- the ways ----


class Way:
    """A way to run a function in another process."""

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        """function(job) for each job, in WORKERS processes."""
        raise NotImplementedError

    def call(self, function: Callable[[Any], Any], job: Any) -> Any:
        return self.map(function, [job])[0]

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        """Start function(job), which kills its process."""
        raise NotImplementedError

    def end(self) -> None:
        pass


def _answer(number: int, function: Callable[[Any], Any], job: Any, answers: Any) -> None:
    answers.put((number, function(job)))


class Processes(Way):
    """multiprocessing.Process, and a pipe of multiprocessing's for what the function returns."""

    def __init__(self, method: str) -> None:
        self.context: Any = multiprocessing.get_context(method)

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(jobs), WORKERS):
            answers = self.context.SimpleQueue()
            numbered = enumerate(jobs[start : start + WORKERS])
            processes = [self.context.Process(target=_answer, args=(n, function, job, answers)) for n, job in numbered]
            for process in processes:
                process.start()
            found = dict(answers.get() for _ in processes)
            finish(*processes)
            results += [found[number] for number in sorted(found)]
        return results

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        process = self.context.Process(target=function, args=(job,))
        process.start()
        process.join(SOON)
        assert process.exitcode == -signal.SIGKILL


class Executor(Way):
    """concurrent.futures."""

    def __init__(self, method: str) -> None:
        self.method = method

    def executor(self) -> Any:
        context: Any = multiprocessing.get_context(self.method)
        return concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context)

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        with self.executor() as executor:
            return list(executor.map(function, jobs, timeout=SOON))

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        with self.executor() as executor, pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(function, job).result(SOON)


class Pool(Way):
    """multiprocessing.Pool."""

    def __init__(self, method: str) -> None:
        self.context: Any = multiprocessing.get_context(method)

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        with self.context.Pool(WORKERS) as pool:
            results: list[Any] = pool.map_async(function, jobs, chunksize=1).get(SOON)
            pool.close()
            pool.join()
        return results

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        with self.context.Pool(1) as pool:
            (worker,) = pool._pool
            pool.apply_async(function, (job,))
            until(lambda: worker not in pool._pool)  # it has replaced it, and the job it had is lost


class Loky(Way):
    """loky's own executor, whose workers stay for the next call."""

    def __init__(self) -> None:
        self.loky: Any = pytest.importorskip("loky")

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        return list(self.loky.get_reusable_executor(WORKERS).map(function, jobs, timeout=SOON))

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            self.loky.get_reusable_executor(WORKERS).submit(function, job).result(SOON)

    def end(self) -> None:
        self.loky.get_reusable_executor(WORKERS).shutdown(wait=True, kill_workers=True)


class Joblib(Loky):
    """joblib.Parallel, which brings a loky of its own."""

    def __init__(self) -> None:
        self.joblib: Any = pytest.importorskip("joblib")
        self.loky = pytest.importorskip("joblib.externals.loky")

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        parallel = self.joblib.Parallel(n_jobs=WORKERS, backend="loky")
        return list(parallel(self.joblib.delayed(function)(job) for job in jobs))

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            self.map(function, [job, job])  # one alone would be run here


class Torch(Processes):
    """torch.multiprocessing.spawn."""

    def __init__(self) -> None:
        self.torch: Any = pytest.importorskip("torch.multiprocessing")
        self.context = self.torch.get_context("spawn")

    def map(self, function: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
        results: list[Any] = []
        for start in range(0, len(jobs), WORKERS):
            some = jobs[start : start + WORKERS]
            answers = self.context.SimpleQueue()
            spawned = self.torch.spawn(_answer_one_of, (function, some, answers), nprocs=len(some), join=False)
            found = dict(answers.get() for _ in some)
            while not spawned.join(SOON):
                pass
            results += [found[number] for number in sorted(found)]
        return results

    def lose(self, function: Callable[[Any], Any], job: Any) -> None:
        with pytest.raises(self.torch.ProcessExitedException, match="SIGKILL"):
            self.torch.spawn(_die_on, (function, job), nprocs=1)


def _answer_one_of(number: int, function: Callable[[Any], Any], jobs: list[Any], answers: Any) -> None:
    _answer(number, function, jobs[number], answers)


def _die_on(number: int, function: Callable[[Any], Any], job: Any) -> None:
    function(job)


WAYS: dict[str, Callable[[], Way]] = {
    **{f"Process, {method}": functools.partial(Processes, method) for method in START_METHODS},
    **{f"ProcessPoolExecutor, {method}": functools.partial(Executor, method) for method in START_METHODS},
    **{f"Pool, {method}": functools.partial(Pool, method) for method in START_METHODS},
    "loky": Loky,
    "joblib": Joblib,
    "torch": Torch,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    made = WAYS[request.param]()
    yield made
    made.end()


def alone(q: SageQueue[Any]) -> bool:
    """Whether nobody else is attached any more."""
    count: int = q.get_stats()["participants"]
    return count == 1


# ---- in and out ----


class Holder:
    """Something of the user's, with a queue somewhere in it."""

    def __init__(self, q: SageQueue[Any]) -> None:
        self.inside: dict[str, Any] = {"queues": [q], "more": (1, {"reference": q.get_reference()})}

    @property
    def queue(self) -> SageQueue[Any]:
        found: SageQueue[Any] = self.inside["queues"][0]
        return found


def use_and_return(job: tuple[SageQueue[Any], SageQueueRef, Holder]) -> Any:
    q, reference, holder = job
    pid = os.getpid()
    q.put(("queue", pid))
    with reference.get_queue() as again:
        again.put(("reference", pid))
    holder.queue.put(("nested", pid))
    assert q.get_reference() == reference == holder.queue.get_reference()
    return q, reference, holder, pid


def test_queues_and_references_go_in_and_come_out(way: Way, name: str) -> None:
    with SageQueue[Any](name) as q:
        again, reference, holder, pid = way.call(use_and_return, (q, q.get_reference(), Holder(q)))
        assert pid != os.getpid()
        assert reference == q.get_reference() == again.get_reference()
        assert [q.get(timeout=SOON) for _ in range(3)] == [("queue", pid), ("reference", pid), ("nested", pid)]
        again.put("back")
        assert holder.queue.get(timeout=SOON) == "back"
        assert q.empty()
        again.close()
        holder.queue.close()
        way.end()
        until(lambda: alone(q))


def test_an_unnamed_queue_goes_in_and_comes_out(way: Way) -> None:
    with SageQueue[Any]() as q:
        again, _, holder, pid = way.call(use_and_return, (q, q.get_reference(), Holder(q)))
        assert [q.get(timeout=SOON)[1] for _ in range(3)] == [pid] * 3
        again.close()
        holder.queue.close()


def make_one(name: str) -> SageQueue[Any]:
    made = SageQueue[Any](name)
    made.put({"made by": os.getpid()})
    return made


def test_a_queue_made_in_the_child_is_handed_back_with_what_is_in_it(way: Way, name: str) -> None:
    """The child has let go of it, or has ended, when it arrives; it is there because something is in it."""
    with way.call(make_one, name) as q:
        assert q.get(timeout=SOON)["made by"] != os.getpid()
        q.put("mine")
        assert q.get() == "mine"
        way.end()
        until(lambda: alone(q))


def serve(road: SageQueue[Any]) -> str:
    """Make a queue that has no name, hand it over, and answer on it what comes on it."""
    with SageQueue[Any]() as questions, SageQueue[Any]() as answers:
        road.put((questions, answers.get_reference()))
        for question in iter(lambda: questions.get(timeout=SOON), None):
            answers.put(question * 2)
    return "served"


def ask(road: SageQueue[Any]) -> list[Any]:
    """The other side of serve()."""
    questions, reference = road.get(timeout=SOON)
    with questions, reference.get_queue() as answers:
        found = []
        for number in range(100):
            questions.put(number)
            found.append(answers.get(timeout=SOON))
        questions.put(None)
    return found


def serve_or_ask(job: tuple[Callable[[Any], Any], SageQueue[Any]]) -> Any:
    return job[0](job[1])


def test_two_children_talk_through_queues_that_one_of_them_made(way: Way) -> None:
    """The parent owns only the road on which they were handed over."""
    with SageQueue[Any]() as road:
        served, answers = way.map(serve_or_ask, [(serve, road), (ask, road)])
        assert served == "served"
        assert answers == [2 * number for number in range(100)]
        assert road.empty()


# ---- many ----


def work_off(job: tuple[int, Any, Any]) -> int:
    """Work until the jobs are shut down; the results go into a queue."""
    number, jobs, results = job
    jobs = jobs.get_queue() if isinstance(jobs, SageQueueRef) else jobs
    done = 0
    while True:
        try:
            with jobs.lease(timeout=SOON) as message:
                results.put((number, message.value))
                done += 1
        except ShutDown:
            return done


@pytest.mark.parametrize("as_reference", [False, True], ids=["queue", "reference"])
def test_four_workers_send_their_results_through_a_queue_and_each_is_there_once(way: Way, as_reference: bool) -> None:
    with SageQueue[Any]() as jobs, SageQueue[Any]() as results:
        for number in range(2000):
            jobs.put((number, "x" * (number % 700)))
        jobs.shutdown()
        handed = jobs.get_reference() if as_reference else jobs
        counts = way.map(work_off, [(worker, handed, results) for worker in range(WORKERS)])
        got = [results.get(timeout=SOON) for _ in range(2000)]
        assert sorted(item[0] for _, item in got) == list(range(2000))
        assert all(item[1] == "x" * (item[0] % 700) for _, item in got)
        by_worker = collections.Counter(worker for worker, _ in got)
        assert counts == [by_worker[worker] for worker in range(WORKERS)]
        assert results.empty()
        assert jobs.get_stats()["unfinished"] == 0
        jobs.join()


def die_with_a_lease(job: tuple[SageQueue[Any], SageQueue[Any]]) -> None:
    q, other = job
    message = q.lease(timeout=SOON)
    other.put(("before the end", message.value))
    other.reserve(100_000)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_is_killed_leaves_its_work_to_others(way: Way) -> None:
    with SageQueue[Any]() as q, SageQueue[Any]() as other:
        for number in range(3):
            q.put(number)
        way.lose(die_with_a_lease, (q, other))
        first = other.get(timeout=SOON)[1]
        seen = {}
        for _ in range(3):
            with q.lease(timeout=SOON) as message:
                seen[message.value] = message.attempts
        noted = [first] + [other.get()[1] for _ in range(other.qsize())]  # joblib had two of them, and perhaps the same message
        assert sorted(seen) == [0, 1, 2]
        assert all(seen[value] > noted.count(value) for value in noted)
        q.join()
        way.end()
        until(lambda: alone(q) and alone(other))
        assert other.get_stats()["reserved"] == 0


# ---- pools ----


pool_queues: list[SageQueue[Any]] = []


def set_up(*queues: Any) -> None:
    pool_queues[:] = [each.get_queue() if isinstance(each, SageQueueRef) else each for each in queues]


def put_through_the_global(number: int) -> int:
    for q in pool_queues:
        q.put((number, os.getpid()))
    return os.getpid()


def put_through_the_argument(job: tuple[SageQueue[Any], int]) -> int:
    job[0].put((job[1], os.getpid()))
    return os.getpid()


def test_a_pools_initializer_can_be_given_queues_and_references(context: Any) -> None:
    with SageQueue[Any]() as q, SageQueue[Any]() as by_reference:
        with context.Pool(2, initializer=set_up, initargs=(q, by_reference.get_reference())) as pool:
            pids = pool.map_async(put_through_the_global, range(50), chunksize=1).get(SOON)
            pool.close()
            pool.join()
        for each in (q, by_reference):
            got = sorted(each.get(timeout=SOON) for _ in range(50))
            assert got == list(zip(range(50), pids))
            assert each.empty()
            until(lambda each=each: alone(each))  # type: ignore[misc]


def test_an_executors_initializer_can_be_given_queues_and_references(context: Any) -> None:
    with SageQueue[Any]() as q, SageQueue[Any]() as by_reference:
        initargs = (q, by_reference.get_reference())
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, initializer=set_up, initargs=initargs) as executor:
            pids = list(executor.map(put_through_the_global, range(50), timeout=SOON))
        for each in (q, by_reference):
            assert sorted(each.get(timeout=SOON) for _ in range(50)) == list(zip(range(50), pids))
            assert each.empty()


def test_lokys_initializer_can_be_given_queues_and_references() -> None:
    loky = pytest.importorskip("loky")
    with SageQueue[Any]() as q, SageQueue[Any]() as by_reference:
        initargs = (q, by_reference.get_reference())
        with loky.ProcessPoolExecutor(2, initializer=set_up, initargs=initargs) as executor:
            pids = list(executor.map(put_through_the_global, range(50), timeout=SOON))
        for each in (q, by_reference):
            assert sorted(each.get(timeout=SOON) for _ in range(50)) == list(zip(range(50), pids))
            assert each.empty()


def test_a_pool_that_replaces_its_workers_loses_nothing(context: Any) -> None:
    """With maxtasksperchild, workers come and go all the time."""
    with SageQueue[Any]() as q:
        with context.Pool(2, initializer=set_up, initargs=(q,), maxtasksperchild=3) as pool:
            by_global = pool.map_async(put_through_the_global, range(12), chunksize=1).get(SOON)
            by_argument = pool.map_async(put_through_the_argument, [(q, n) for n in range(12, 24)], chunksize=1).get(SOON)
            pool.close()
            pool.join()
        got = [q.get(timeout=SOON) for _ in range(24)]
        assert sorted(got) == list(zip(range(24), by_global + by_argument))
        assert q.empty()
        assert len({pid for _, pid in got}) >= 8  # 24 tasks, 3 for each
        until(lambda: alone(q))


def test_a_pool_that_is_terminated_in_the_middle_harms_nobody(context: Any) -> None:
    with SageQueue[Any](maxsize=3) as q, SageQueue[Any]() as jobs:
        for number in range(100):
            jobs.put(number)
        with context.Pool(2) as pool:
            pool.map_async(work_off, [(0, jobs, q), (1, jobs, q)])
            first = [q.get(timeout=SOON)[1] for _ in range(10)]
            until(q.full)
            pool.terminate()
            pool.join()
        rest: list[int] = []
        while len(set(first + rest)) < 100:
            if not q.empty():
                rest.append(q.get()[1])
                continue
            with jobs.lease(timeout=SOON) as message:
                rest.append(message.value)
        assert sorted(set(first + rest)) == list(range(100))
        # Whoever was killed between the result and the acknowledgement has his job done twice, and nobody else's is.
        assert len(first + rest) <= 102


# ---- Process ----


class Works:
    """A Process with queues as attributes, as people write them."""

    def __init__(self, questions: SageQueue[Any], answers: SageQueueRef) -> None:
        super().__init__()
        self.questions = questions
        self.answers = answers

    def run(self) -> None:
        with self.answers.get_queue() as answers:
            for question in iter(lambda: self.questions.get(timeout=SOON), None):
                answers.put((question, question + 1))


class ForkedWorker(Works, ForkProcess):
    pass


class SpawnedWorker(Works, SpawnProcess):
    pass


class ServedWorker(Works, ForkServerProcess):
    pass


@pytest.mark.parametrize("kind", [ForkedWorker, SpawnedWorker, ServedWorker])
def test_a_queue_can_be_an_attribute_of_a_process(kind: Any) -> None:
    with SageQueue[Any]() as questions, SageQueue[Any]() as answers:
        workers = [kind(questions, answers.get_reference()) for _ in range(2)]
        for worker in workers:
            worker.start()
        for number in range(100):
            questions.put(number)
        assert sorted(answers.get(timeout=SOON) for _ in range(100)) == [(n, n + 1) for n in range(100)]
        for _ in workers:
            questions.put(None)
        finish(*workers)
        assert questions.empty() and answers.empty()


def echo_for_ever(questions: SageQueue[Any], answers: SageQueue[Any]) -> None:
    while True:
        answers.put(questions.get())


def test_a_daemonic_process_uses_queues_and_is_ended_while_it_waits(context: Any) -> None:
    with SageQueue[Any]() as questions, SageQueue[Any]() as answers:
        child = context.Process(target=echo_for_ever, args=(questions, answers), daemon=True)
        child.start()
        for number in range(100):
            questions.put(number)
        assert [answers.get(timeout=SOON) for _ in range(100)] == list(range(100))
        until(lambda: bool(questions.get_stats()["sleeps"]))
        child.terminate()
        child.join(SOON)
        questions.put("for somebody else")
        assert questions.get(timeout=SOON) == "for somebody else"
        until(lambda: alone(questions) and alone(answers))


@pytest.mark.parametrize("method", START_METHODS)
def test_daemonic_children_end_with_their_parent_and_leave_nothing(
    name: str, method: str, tmp_path: pathlib.Path, queue_directory: pathlib.Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, sys
from sage_queue import SageQueue

def echo(questions, answers):
    while True:
        answers.put(questions.get())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    questions, answers = SageQueue(sys.argv[2]), SageQueue()
    for _ in range(2):
        context.Process(target=echo, args=(questions, answers), daemon=True).start()
    for number in range(20):
        questions.put(number)
    print(sorted(answers.get() for _ in range(20)) == list(range(20)))
"""
    )
    command = [sys.executable, str(program), method, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON)
    assert (done.stdout, done.stderr) == ("True\n", "")
    until(lambda: not _queues(queue_directory))


def _queues(directory: pathlib.Path) -> int:
    """How many there are.  Who was killed has left his to whoever looks next."""
    sage_queue.collect_garbage()
    return len(list(directory.iterdir()))
