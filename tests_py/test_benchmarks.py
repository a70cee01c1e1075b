"""The benchmark's own machinery: that it runs, checks what it measures, and survives what it measures.  No figure is judged here."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed

from benchmarks import cells, event_loop, peers, targets, throughput, watchdog  # noqa: E402
from benchmarks.core import Program  # noqa: E402
from benchmarks.results import Result  # noqa: E402

SMALL = [
    "throughput/seed/4P4C",
    "singles/seed/4P4C",
    "singles/raw64B/1P1C",
    "batches/seed/4P1C",
    "batches/seed/4P1C-put-singly",
    "batches/raw64B/1P1C",
    "asyncio/latency/at-once",
    "asyncio/tasks/100",
    "calls/seed/batches",
]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_cell_runs_for_every_peer_and_nobody_fails_or_loses_anything(name, tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", name, "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(figures.read_text())["cells"]
    assert cell["entrants"]["sage_queue"]["trouble"] is None
    for entrant in cell["entrants"].values():
        if entrant["trouble"] != "hung":  # some of the others do that now and then
            assert entrant["trouble"] is None
            assert all(figure > 0 for metric, figure in entrant["rounds"][0].items() if metric != "overhead_ns")


def test_every_target_is_measured_by_a_cell_and_against_an_entrant_that_may_be_there():
    everybody = (*peers.PEERS, *peers.SPECIALISTS)
    catalogue = {cell.name: cell for cell in cells.catalogue(cells.QUICK, everybody, Program())}
    for target in targets.TARGETS:
        cell = catalogue[target.cell]
        figures = dict.fromkeys(METRICS, 2.0)
        result = Result(cell, {entrant: [figures] for entrant in cell.entrants})
        assert target.value(result) is not None, target.says


METRICS = [
    "messages_per_s", "arrays_per_s", "p50_us", "one_way_p50_us", "put_copies", "view_copies", "put_get_copies",
    "overhead_ns", "idle_cpu_percent", "idle_tasks_cpu_percent",
]  # fmt: skip


class LosesOne(peers.StandardSimpleQueue):
    """A queue that drops one message on its way, and says nothing."""

    def __init__(self):
        super().__init__()
        put = self.put

        def put_most(item):
            if item is throughput.END or item[1] != 7:
                put(item)

        self.put = put_most


class Swaps(peers.StandardSimpleQueue):
    """A queue that delivers two messages of one producer in the wrong order."""

    def __init__(self):
        super().__init__()
        put, held = self.put, []

        def put_swapped(item):
            if item is not throughput.END and item[1] == 7 and not held:
                held.append(item)
                return
            put(item)
            if held and len(held) == 1:
                held.append(None)
                put(held[0])

        self.put = put_swapped


@pytest.mark.parametrize("faulty, complaint", [(LosesOne, "messages: 20000 put, 19999 got"), (Swaps, "out_of_order")])
def test_a_queue_that_loses_or_reorders_is_reported_instead_of_timed(faulty, complaint):
    with pytest.raises(watchdog.Trouble, match=complaint):
        watchdog.run(lambda: throughput.measure(faulty, (0, 0), 1, 1, 0.01), 60)


class Batches(peers.StandardSimpleQueue):
    """A queue of whole batches, which may change what it carries."""

    way = throughput.Way(put_many=True, get_many=True, distinct=True)

    def __init__(self):
        super().__init__()
        carry = self.put
        self.put_many = lambda items: carry(self.change(items))
        self.get_many = self.get

    def change(self, items):
        return items


class DropsTheLast(Batches):
    """Of one batch of the proof."""

    def change(self, items):
        return items[:-1] if items[-1] == (0, 99, MESSAGE) else items


class RepeatsTheLast(Batches):
    def change(self, items):
        return [*items, items[-1]] if items[-1] == (0, 99, MESSAGE) else items


class TurnsRound(Batches):
    def change(self, items):
        return items[::-1] if items[-1] == (0, 99, MESSAGE) else items


class RepeatsWhenTimed(Batches):
    """Carries one message too many after the proof."""

    def change(self, items):
        return [*items, items[-1]] if items[-1] == MESSAGE and not self.done() else items

    def done(self):
        done, self.__dict__["_done"] = self.__dict__.get("_done", False), True
        return done


MESSAGE = {"data": [1, 2, 3]}


def test_a_queue_that_carries_batches_is_timed():
    figures = watchdog.run(lambda: throughput.measure(Batches, MESSAGE, 2, 1, 0.01, Batches.way), 60)
    assert figures["messages"] % peers.BATCH == 0 and figures["messages_per_s"] > 0


@pytest.mark.parametrize(
    "faulty, complaint",
    [
        (DropsTheLast, "messages: 20000 put, 19999 got"),
        (RepeatsTheLast, "messages: 20000 put, 20001 got"),
        (TurnsRound, "99 messages out_of_order"),
        (RepeatsWhenTimed, "a worker ended with 1"),
    ],
)
def test_batches_with_a_fault_are_reported_instead_of_timed(faulty, complaint):
    with pytest.raises(watchdog.Trouble, match=complaint):
        watchdog.run(lambda: throughput.measure(faulty, MESSAGE, 1, 1, 0.01, faulty.way), 60)


class Damages(peers.StandardSimpleQueue):
    """A queue of bytes that flips a bit of one message."""

    def __init__(self):
        super().__init__()
        put = self.put
        self.put = lambda item: put(item[:-1] + b"\1" if item[:6] == b"\0\0\7\0\0\0" else item)


def test_a_damaged_message_of_bytes_is_reported_instead_of_timed():
    with pytest.raises(watchdog.Trouble, match="1 messages damaged"):
        watchdog.run(lambda: throughput.measure(Damages, bytes(64), 1, 1, 0.01, throughput.Way(raw=True)), 60)


class InCoroutines(peers.StandardSimpleQueue):
    """A queue with coroutines, of which one may lose what it has taken."""

    loses = False

    def __init__(self):
        super().__init__()
        self.get_async = self.take

    async def take(self):
        while self._queue.empty():
            await asyncio.sleep(0)
        item = self.get()
        if self.loses and isinstance(item, tuple) and item[1] == 7:
            return await self.take()
        return item


class LosesInCoroutines(InCoroutines):
    loses = True


def test_a_queue_with_coroutines_is_timed_with_many_tasks():
    figures = watchdog.run(lambda: event_loop.tasks(InCoroutines, MESSAGE, 0.01, 3), 60)
    assert figures["messages"] > 0


def test_a_queue_whose_coroutine_loses_a_message_is_reported_instead_of_timed():
    with pytest.raises(watchdog.Trouble, match="messages: 20000 put, 19999 got"):
        watchdog.run(lambda: event_loop.tasks(LosesInCoroutines, MESSAGE, 0.01, 3), 60)


def test_a_measurement_that_hangs_is_ended_with_all_its_processes(tmp_path):
    def hang():
        child = peers.CONTEXT.Process(target=time.sleep, args=(3600,))
        child.start()
        (tmp_path / "pid").write_text(str(child.pid))
        child.join()

    with pytest.raises(watchdog.Trouble, match="hung"):
        watchdog.run(hang, 1)
    child = int((tmp_path / "pid").read_text())
    while os.path.exists(f"/proc/{child}") and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        time.sleep(0.01)


def test_a_worker_that_dies_ends_its_measurement_at_once():
    class Dies(peers.StandardSimpleQueue):
        def __init__(self):
            super().__init__()
            self.put = lambda item: os._exit(3)

    with pytest.raises(watchdog.Trouble, match="a worker ended with 3"):
        watchdog.run(lambda: throughput.measure(Dies, (0, 0), 1, 1, 0.01), 60)
