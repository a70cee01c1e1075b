"""The examples run, and find nothing wrong with what they do.  (The one with Ray is in test_ray.py.)"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples" / "python"


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *map(str, arguments)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("frames", "mib"), [(20, 16), (300, 1)])
def test_frames_pass_two_stages_in_place(frames: int, mib: int) -> None:
    pytest.importorskip("numpy")
    assert f"{frames} frames of {mib} MiB through two stages" in run("frames.py", frames, mib)


def test_every_job_is_done_though_workers_are_killed() -> None:
    match = re.fullmatch(r"(\d+) jobs done in spite of (\d+) kills, .* moved away: \[(.*)\]\n", run("jobs.py", 300))
    assert match
    assert int(match[1]) + len(match[3].split(",")) >= 300
    assert int(match[2]) > 0


@pytest.mark.parametrize("requests", [8, 2000])
def test_every_request_that_waits_is_answered_by_the_workers_that_are_left(requests: int) -> None:
    match = re.fullmatch(r"(\d+) requests, (\d+) answered, (\d+) given up, one worker killed\n", run("async_workers.py", requests))
    assert match
    assert int(match[1]) == int(match[2]) + int(match[3]) == requests
