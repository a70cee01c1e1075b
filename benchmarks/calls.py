"""What a put plus a get in one process costs on top of pickling: the queue's own cost, with nobody to wait for."""

from __future__ import annotations

import copy
import pickle
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

from .peers import BATCH, Peer

PAIRS = 200  # timed together; with batches, messages


def singly(new_peer: Callable[[], Peer], message: Any, repeats: int) -> dict[str, float]:
    """One put, one get, and again."""
    peer = new_peer()
    put, get = peer.put, peer.get

    def calls() -> None:
        for _ in repeat(None, PAIRS):
            put(message)
            get()

    figures = _measure(calls, [message], repeats)
    put(message)
    if get() != message:
        raise AssertionError("got another message than was put")
    peer.close()
    return figures


def batches(new_peer: Callable[[], Peer], message: Any, repeats: int) -> dict[str, float]:
    """BATCH messages a put_many, all of them by one get_many.  The figures are for one message, as in `singly`."""
    peer = new_peer()
    messages = [copy.deepcopy(message) for _ in range(BATCH)]
    put_many, get_many = peer.put_many, peer.get_many

    def calls() -> None:
        for _ in repeat(None, PAIRS // BATCH):
            put_many(messages)
            count = 0
            while count < BATCH:  # once, in general
                count += len(get_many())

    figures = _measure(calls, messages, repeats)
    put_many(list(range(BATCH)))
    numbers: list[Any] = []
    while len(numbers) < BATCH:
        numbers += get_many()
    if numbers != list(range(BATCH)):
        raise AssertionError(f"got {numbers}")
    peer.close()
    return figures


def _measure(calls: Callable[[], None], messages: list[Any], repeats: int) -> dict[str, float]:
    """Pickling alone and the calls take turns, and each difference is of neighbours in time."""
    dumps, loads = pickle.dumps, pickle.loads
    pickling_ns, calls_ns = [], []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        for _ in repeat(None, PAIRS // len(messages)):
            for message in messages:
                loads(dumps(message))
        between_ns = time.perf_counter_ns()
        calls()
        calls_ns.append((time.perf_counter_ns() - between_ns) / PAIRS)
        pickling_ns.append((between_ns - start_ns) / PAIRS)
    return {
        "overhead_ns": statistics.median(both - alone for both, alone in zip(calls_ns, pickling_ns)),
        "pair_ns": statistics.median(calls_ns),
        "pickle_ns": statistics.median(pickling_ns),
    }
