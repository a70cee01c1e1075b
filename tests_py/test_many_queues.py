"""How SAGE uses queues: one for each task, one for each client, hundreds of them; and a thousand that come and go.

Every message of the many-process tests carries who sent it and its number, and is accounted for: none lost, none twice, each
sender's in order.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sage_queue import SageQueue, SageQueueManager, SageQueueRef, create_queue, destroy_queue, list_queues

SOON = 60.0
SMALL = {"capacity": "64 KiB", "arena": "256 KiB"}


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Any:
    return multiprocessing.get_context(request.param)


def finish(processes: list[Any]) -> None:
    for process in processes:
        process.join(SOON)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- one input queue for each task, which many upstream tasks put into; a stop signal from each of them ends it ----

STOP = "stop"
PACKETS = 300


def _source(source: int, downstream: list[SageQueue[Any]]) -> None:
    """Puts its packets into the input queues of the tasks in turn, then a stop signal into each."""
    for number in range(PACKETS):
        downstream[number % len(downstream)].put((source, number), timeout=SOON)
    for q in downstream:
        q.put((source, STOP))


def _task(task: int, inputs: SageQueue[Any], upstream: int, sink: SageQueueRef) -> None:
    """Passes everything on to the sink, until every source upstream has stopped."""
    stopped: set[int] = set()
    with sink.get_queue() as out:
        while len(stopped) < upstream:
            source, number = inputs.get(timeout=SOON)
            if number == STOP:
                assert source not in stopped
                stopped.add(source)
            else:
                assert source not in stopped, "a packet came after its source's stop signal"
                out.put((task, source, number), timeout=SOON)
        out.put((task, None, STOP))
    assert inputs.empty()


def test_tasks_with_one_input_queue_each_and_many_sources_upstream_lose_nothing(name: str, start_method: Any) -> None:
    sources, tasks = 5, 3
    with SageQueueManager(namespace=name) as manager:
        inputs = [manager.create_queue(f"task-{number}", maxsize=20) for number in range(tasks)]
        sink = manager.create_queue("sink", maxsize=50)
        processes = [start_method.Process(target=_task, args=(n, inputs[n], sources, sink.get_reference())) for n in range(tasks)]
        processes += [start_method.Process(target=_source, args=(n, inputs)) for n in range(sources)]
        for process in processes:
            process.start()
        arrived: list[tuple[int, int, int]] = []
        running = set(range(tasks))
        while running:
            task, source, number = sink.get(timeout=SOON)
            if number == STOP:
                running.remove(task)
            else:
                assert task in running
                arrived.append((task, source, number))
        finish(processes)
        assert sink.empty() and all(q.empty() for q in inputs)
    assert sorted((source, number) for _, source, number in arrived) == [(s, n) for s in range(sources) for n in range(PACKETS)]
    assert all(number % tasks == task for task, _, number in arrived)
    for task in range(tasks):
        for source in range(sources):
            numbers = [n for t, s, n in arrived if (t, s) == (task, source)]
            assert numbers == sorted(numbers)


# ---- request and response: the client's own queue goes along with the request ----


def _serve(requests: SageQueue[Any]) -> None:
    """Answers each request into the queue that came with it, until it is told to stop."""
    opened: dict[SageQueueRef, SageQueue[Any]] = {}
    while (request := requests.get(timeout=SOON)) is not None:
        ref, number = request
        if ref not in opened:
            opened[ref] = ref.get_queue()
        opened[ref].put((number, number * number), timeout=SOON)
    for q in opened.values():
        q.close()


def _ask(requests: SageQueue[Any], clients: int, questions: int, first: int) -> None:
    """Several clients in one process, each with a response queue of its own."""
    responses = [create_queue(f"response-{os.getpid()}-{client}", 10, **SMALL) for client in range(clients)]
    for question in range(questions):
        for client, q in enumerate(responses):
            requests.put((q.get_reference(), first + client * questions + question), timeout=SOON)
        for client, q in enumerate(responses):
            number = first + client * questions + question
            assert q.get(timeout=SOON) == (number, number * number)
    for q in responses:
        assert q.empty()
        q.close()


def test_hundreds_of_clients_with_a_response_queue_each_get_their_own_answers(name: str, start_method: Any) -> None:
    asking, clients, questions, servers = 3, 100, 4, 2
    with SageQueue[Any](name, maxsize=1000) as requests:
        serving = [start_method.Process(target=_serve, args=(requests,)) for _ in range(servers)]
        processes = [start_method.Process(target=_ask, args=(requests, clients, questions, 10**6 * n)) for n in range(asking)]
        for process in serving + processes:
            process.start()
        finish(processes)
        for _ in serving:
            requests.put(None)
        finish(serving)
        assert requests.empty()
    assert list_queues() == []


def test_hundreds_of_clients_in_threads_get_their_own_answers(name: str) -> None:
    with SageQueue[Any](name) as requests:
        server = threading.Thread(target=_serve, args=(requests,))
        server.start()
        wrong: list[Any] = []

        def client(number: int) -> None:
            with SageQueue[Any](**SMALL) as responses:  # type: ignore[arg-type]
                for question in range(3):
                    requests.put((responses.get_reference(), number * 10 + question))
                    answer = responses.get(timeout=SOON)
                    if answer != (number * 10 + question, (number * 10 + question) ** 2):
                        wrong.append((number, question, answer))

        clients = [threading.Thread(target=client, args=(number,)) for number in range(200)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        requests.put(None)
        server.join()
        assert wrong == []


# ---- many that come and go ----


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _mappings(directory: pathlib.Path) -> int:
    with open("/proc/self/maps", encoding="utf-8") as file:
        return sum(str(directory) in line for line in file)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_WAYS: dict[str, Callable[[str], None]] = {}


def _way(use: Callable[[str], None]) -> Callable[[str], None]:
    _WAYS[use.__name__.strip("_").replace("_", " ")] = use
    return use


@_way
def _closed(name: str) -> None:
    with create_queue(name, 10) as q:
        q.put({"data": [1, 2, 3]})
        assert q.get() == {"data": [1, 2, 3]}


@_way
def _destroyed_with_messages_in_it(name: str) -> None:
    q = create_queue(name, 10)
    q.put(b"x" * 100_000)
    q.destroy()


@_way
def _destroyed_by_name(name: str) -> None:
    q = create_queue(name, 10)
    q.put(1)
    q.close()
    assert destroy_queue(name)


@_way
def _dropped(name: str) -> None:
    q = SageQueue[int](maxsize=10)
    q.put(1)


@_way
def _reached_through_a_reference(name: str) -> None:
    with SageQueue[int](name) as q, pickle.loads(pickle.dumps(q.get_reference())).get_queue() as same:
        q.put(1)
        assert same.get() == 1


@pytest.mark.parametrize("use", [pytest.param(use, id=way) for way, use in _WAYS.items()])
def test_a_thousand_queues_one_after_the_other_leave_nothing_behind(
    use: Callable[[str], None], name: str, queue_directory: pathlib.Path
) -> None:
    for number in range(50):  # what the first ones bring along is not a leak
        use(f"{name}-{number}")
    before = _descriptors(), _mappings(queue_directory), sorted(queue_directory.iterdir())
    resident = _resident_bytes()
    for number in range(1000):
        use(f"{name}-{number}")
    assert (_descriptors(), _mappings(queue_directory), sorted(queue_directory.iterdir())) == before
    assert _resident_bytes() - resident < 4 << 20  # 4 KiB for each of a thousand would be as much


@pytest.fixture
def descriptors_for_all() -> Iterator[None]:
    """Each queue takes one file descriptor, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1500 + _descriptors()
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this system lets a process have only {hard} file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_queues_at_once_work_and_leave_nothing_behind(
    name: str, queue_directory: pathlib.Path, descriptors_for_all: None
) -> None:
    def round_trip() -> None:
        with SageQueueManager(namespace=name) as manager:
            queues = [manager.create_queue(f"client-{number}", 10, **SMALL) for number in range(1000)]
            for number, q in enumerate(queues):
                q.put(number)
            assert len(list(queue_directory.iterdir())) == 1000
            assert [q.get() for q in queues] == list(range(1000))

    round_trip()
    before = _descriptors(), _mappings(queue_directory), sorted(queue_directory.iterdir())
    resident = _resident_bytes()
    round_trip()
    assert (_descriptors(), _mappings(queue_directory), sorted(queue_directory.iterdir())) == before
    assert _resident_bytes() - resident < 4 << 20


@pytest.mark.parametrize("options", [{}, {"maxsize": 10}, SMALL, {"arena": 0}, {"capacity": "1 GiB", "arena": "1 GiB"}], ids=str)
def test_a_queue_costs_less_than_64_kib_until_it_is_used(
    options: dict[str, Any], name: str, queue_directory: pathlib.Path
) -> None:
    with SageQueue[Any](name, **options) as q:
        (file,) = queue_directory.iterdir()
        assert 0 < file.stat().st_blocks * 512 < 64 << 10
        q.put({"data": [1, 2, 3], "meta": "SAGE"})
        q.get()
        if options.get("capacity") != "1 GiB":
            assert file.stat().st_blocks * 512 < 64 << 10  # nor does a first small message cost more
