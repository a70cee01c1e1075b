"""What one put plus one get in one process costs on top of pickling: the queue's own cost, with nobody to wait for."""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from .peers import Peer

PAIRS = 200  # timed together


def measure(new_peer: Callable[[], Peer], message: Any, repeats: int) -> dict[str, float]:
    """Pickling alone and a put plus a get take turns, and each difference is of neighbours in time."""
    peer = new_peer()
    put, get = peer.put, peer.get
    dumps, loads = pickle.dumps, pickle.loads
    pickling_ns, calls_ns = [], []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        for _ in repeat(None, PAIRS):
            loads(dumps(message))
        between_ns = time.perf_counter_ns()
        for _ in repeat(None, PAIRS):
            put(message)
            get()
        calls_ns.append((time.perf_counter_ns() - between_ns) / PAIRS)
        pickling_ns.append((between_ns - start_ns) / PAIRS)
    peer.put(message)
    if peer.get() != message:
        raise AssertionError("got another message than was put")
    peer.close()
    return {
        "overhead_ns": statistics.median(both - alone for both, alone in zip(calls_ns, pickling_ns)),
        "pair_ns": statistics.median(calls_ns),
        "pickle_ns": statistics.median(pickling_ns),
    }
