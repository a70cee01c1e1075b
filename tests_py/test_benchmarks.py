"""The benchmark's own machinery: that it runs, checks what it measures, and survives what it measures.  No figure is judged here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed

from benchmarks import peers, throughput, watchdog  # noqa: E402


def test_a_small_cell_runs_for_every_peer_and_reports_nothing_lost(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", "throughput/seed/4P4C", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(figures.read_text())["cells"]
    ours = cell["entrants"]["sage_queue"]
    assert ours["trouble"] is None
    assert ours["rounds"][0]["messages"] > 0


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
