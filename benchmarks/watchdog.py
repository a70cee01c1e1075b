"""Run one measurement in a process group of its own, and end the group if it does not finish in time.

A queue that hangs, or a worker that dies and lets the others wait, costs a measurement and never the benchmark.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from .peers import CONTEXT

Figures = dict[str, float]
Measurement = Callable[[], Figures]

#: How long a process may take to end after it has delivered its figures.
LEAVING_S = 5


class Trouble(Exception):
    """A measurement that gave no figures: it hung, or it failed."""


def run(measurement: Measurement, limit_s: float) -> Figures:
    """The measurement's figures; Trouble if it fails, or takes longer than `limit_s`."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_measure, args=(measurement, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_s):
            raise Trouble("hung")
        try:
            answer: Figures | str = receiver.recv()
        except EOFError:
            process.join()
            raise Trouble(f"failed: the measuring process ended with {process.exitcode}") from None
        if isinstance(answer, str):
            raise Trouble(f"failed: {answer}")
        process.join(LEAVING_S)
        return answer
    finally:
        if process.pid is not None:
            _end_group(process.pid)
        process.join()
        receiver.close()


def _measure(measurement: Measurement, sender: Connection) -> None:
    os.setsid()
    try:
        answer: Figures | str = measurement()
    except Exception as error:
        traceback.print_exc()
        answer = f"{type(error).__name__}: {error}"
    sender.send(answer)


def _end_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        try:
            os.kill(leader, signal.SIGKILL)  # it was so early that it has no group yet
        except ProcessLookupError:
            pass
