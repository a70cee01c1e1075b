"""The soak, short; and that it finds what it looks for."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("numpy", reason="the soak puts arrays")

#: A watchdog against hangs, on a machine that has much else to do.
pytestmark = pytest.mark.timeout(400)

SOAK = pathlib.Path(__file__).parent / "soak.py"


def soak(*arguments: str, status: int) -> tuple[str, dict[str, str]]:
    """What it said, and its leak table: the verdict by what was looked at."""
    done = subprocess.run([sys.executable, str(SOAK), "--no-settle", *arguments], capture_output=True, text=True, timeout=380)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, dict(re.findall(r"^(\S.*?: .*?)  .*  ([A-Z]+|good|no trend yet)\b", done.stdout, re.MULTILINE))


def test_a_short_soak_with_kills_loses_nothing_and_leaves_nothing_behind() -> None:
    said, table = soak("0.1", "--round", "1.5", "--kills", "30", status=0)
    assert "good: nothing lost, nothing twice, nothing left" in said
    assert {"queues: participants", "conductor: descriptors", "resident: memory of its own, KiB", "after the end: files"} <= set(table)
    assert set(table.values()) <= {"good", "no trend yet"}


def test_every_leak_that_is_planted_is_found_and_no_other() -> None:
    """One more in each round: of a descriptor, a mapped queue, a thread, memory, a file, a participant, a reserved block, a task, time."""
    leaks = "descriptor,mapping,thread,memory,file,participant,block,task,cost"
    said, table = soak("0", "--round", "0.1", "--least-rounds", "7", "--plant", leaks, status=1)
    for what in (
        "directory: files",
        "queues: participants",
        "queues: unfinished",
        "queues: reserved",
        "queues: arena bytes in use",
        "conductor: descriptors",
        "conductor: mappings of queues",
        "conductor: threads",
        "after the end: files",
        "after the end: descriptors",
        "after the end: mappings of queues",
        "after the end: threads",
    ):
        assert table[what] in ("LEAK", "LEFT"), said
    assert table["conductor: memory of its own, KiB"] == "GROWS", said
    assert table["job: cost"] == "SLOWER", said
    for what in ("queues: items", "queues: held", "queues: leased", "queues: findings of check", "resident: descriptors"):
        assert table[what] == "good", said


@pytest.mark.parametrize("what", ["lost", "twice"])
def test_a_message_that_is_lost_or_doubled_is_found(what: str) -> None:
    said, _ = soak("0", "--round", "0.1", "--plant", what, status=1)
    assert f"'{what}': 1" in said
