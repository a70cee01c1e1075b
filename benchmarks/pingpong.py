"""How long a message takes there and back, between two processes on two cores, one message at a time.

Left alone, the scheduler now and then puts both processes on one core, where a round trip is another thing.  So each is bound to a
core of its own; but only after the warm-up, since a library that counts the cores when it first waits should see all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .peers import CONTEXT, Peer

MESSAGE = bytes(64)  # as in core.c
WARM_UP_ROUNDS = 100
END = None


def bind_to_core(number: int) -> None:
    """Let all threads of this process run on the `number`th usable core only.  core.c does the same."""
    usable = sorted(os.sched_getaffinity(0))
    if number < len(usable):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), [usable[number]])


def _echo(there: Peer, back: Peer) -> None:
    for _ in range(WARM_UP_ROUNDS):
        back.put(there.get())
    bind_to_core(1)
    while (item := there.get()) is not END:
        back.put(item)
    there.close()
    back.close()


def _round_trips_ns(there: Peer, back: Peer, rounds: int) -> list[int]:
    durations_ns = []
    for _ in range(rounds):
        start_ns = time.monotonic_ns()
        there.put(MESSAGE)
        item = back.get()
        durations_ns.append(time.monotonic_ns() - start_ns)
        if item != MESSAGE:
            raise AssertionError(f"put {MESSAGE!r}, got {item!r}")
    return durations_ns


def measure(new_peer: Callable[[], Peer], rounds: int) -> dict[str, float]:
    there, back = new_peer(), new_peer()
    echo = CONTEXT.Process(target=_echo, args=(there, back))
    echo.start()
    _round_trips_ns(there, back, WARM_UP_ROUNDS)
    bind_to_core(0)
    durations_ns = sorted(_round_trips_ns(there, back, rounds))
    there.put(END)
    echo.join()
    there.close()
    back.close()
    return {
        "p50_us": durations_ns[rounds // 2] / 1e3,
        "p99_us": durations_ns[rounds * 99 // 100] / 1e3,
        "p999_us": durations_ns[rounds * 999 // 1000] / 1e3,
    }
