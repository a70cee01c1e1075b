"""Large arrays: what a put and a get cost beside copying the same array once, and how many go through a second.

costs       Two processes.  Puts, gets and plain `numpy.copyto` into memory that has been touched before take turns, one at a time: while
            one process is measured, the other sleeps.  Its caches are full of other things then.  A figure is a multiple of the copy's time in the same process and run.
throughput  One producer, one consumer, as fast as they go.  The first and the last element carry the sequence; the consumer checks both,
            so it has touched the array, and nothing is missing or out of order.  The producer takes several arrays in turn, for
            multiprocessing.Queue pickles an item only after put() has returned.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

from .peers import CONTEXT, PENDING, Peer
from .watchdog import Figures

#: Room for a few of the largest arrays, the same for everybody who wants to know.
ROOM_BYTES = 128 << 20


def missing() -> str | None:
    return "numpy is not installed" if numpy is None else None


def new_array(size_bytes: int) -> Any:
    array = numpy.arange(size_bytes // 4, dtype=numpy.float32)
    array[0] = array[-1] = 0
    return array


# ---- costs ----


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start_ns = time.perf_counter_ns()
    result = call()
    return time.perf_counter_ns() - start_ns, result


def _stay_awake() -> None:
    """Let the item be there for a while, and this process be as one that is at work: a nap would be measured, too."""
    until_s = time.perf_counter() + 0.001
    while time.perf_counter() < until_s:
        pass


def _consume(queue: Any, rounds: int, size_bytes: int, ready: Any, answer: Any) -> None:
    """Get alternately a copy and a view; each time when the item has been there for a while."""
    source, target = new_array(size_bytes), new_array(size_bytes)
    times: dict[str, list[float]] = {"copy": [], "get": [], "view": []}
    for number in range(2 * rounds):
        ready.acquire()
        _stay_awake()
        kind, get = ("get", queue.get) if number % 2 else ("view", lambda: queue.get(copy=False))
        spent_ns, array = _timed(get)
        if array[0] != number or array[-1] != number:
            raise AssertionError(f"array {number} has {array[0]}, {array[-1]} at its ends")
        times[kind].append(spent_ns)
        del array
        times["copy"].append(_timed(lambda: numpy.copyto(target, source))[0])
        answer.send(number)
    answer.send(times)


def costs(new_peer: Callable[[], Peer], size_bytes: int, rounds: int) -> Figures:
    peer: Any = new_peer()
    ready = CONTEXT.Semaphore(0)
    receiver, sender = CONTEXT.Pipe(duplex=False)
    consumer = CONTEXT.Process(target=_consume, args=(peer.queue, rounds, size_bytes, ready, sender))
    consumer.start()
    source, target = new_array(size_bytes), new_array(size_bytes)
    puts, copies = [], []
    for number in range(2 * rounds):
        source[0] = source[-1] = number
        copies.append(_timed(lambda: numpy.copyto(target, source))[0])
        puts.append(_timed(lambda: peer.queue.put(source))[0])
        ready.release()
        receiver.recv()
    times = receiver.recv()
    consumer.join()
    peer.close()
    here, there = statistics.median(copies), statistics.median(times["copy"])
    # The first of each meet memory that has never been used.
    put, get, view = (statistics.median(spent[2:]) for spent in (puts, times["get"], times["view"]))
    return {
        "put_copies": put / here,
        "view_copies": view / there,
        "put_get_copies": put / here + get / there,
        "copy_us": here / 1e3,
        "first_put_copies": puts[0] / here,
    }


# ---- throughput ----


def _produce_arrays(peer: Any, size_bytes: int, seconds: float, started: Any) -> None:
    turns = itertools.cycle([new_array(size_bytes) for _ in range(PENDING + 4)])
    end_s = None
    for sequence, array in enumerate(turns, 1):
        array[0] = array[-1] = sequence
        peer.put(array)
        if sequence == WARM_UP:
            started.value = time.monotonic_ns()
            end_s = time.monotonic() + seconds
        elif end_s is not None and time.monotonic() > end_s:
            break
    last = next(turns)
    last[0] = last[-1] = -1
    peer.put(last)
    peer.close()


#: Arrays before the clock starts: every page of every queue's memory has been used once.
WARM_UP = 40


def throughput(new_peer: Callable[[], Peer], size_bytes: int, seconds: float) -> Figures:
    peer: Any = new_peer()
    started = CONTEXT.RawValue("q", 0)
    producer = CONTEXT.Process(target=_produce_arrays, args=(peer, size_bytes, seconds, started))
    producer.start()
    count = 0
    while True:
        array = peer.get()
        first, last = float(array[0]), float(array[-1])
        del array
        if first == -1:
            break
        count += 1
        if first != last or first != count % (1 << 24):
            raise AssertionError(f"array {count} has {first}, {last} at its ends")
    ended_ns = time.monotonic_ns()
    producer.join()
    peer.close()
    timed = count - WARM_UP
    elapsed_s = (ended_ns - started.value) * 1e-9
    return {"arrays_per_s": timed / elapsed_s, "gb_per_s": timed * size_bytes / elapsed_s / 1e9, "messages": timed}
