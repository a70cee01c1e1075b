"""What the demo's processes do.  Free of Typer and Rich, so that starting them is quick.

Every message is a dict that says who sent it, as which one, when, and a checksum of its payload; a few payloads are large.  A consumer
checks what it sees at once, and reports at the end which messages of which producer it has seen.
"""

from __future__ import annotations

import os
import random
import signal
import time
import zlib
from array import array
from typing import Any

from sage_queue import SageQueue, ShutDown

#: Of each producer's messages, one in so many is of this size; the others carry a small list.
LARGE_EVERY, LARGE_BYTES = 100, 16 << 10
HUGE_EVERY, HUGE_BYTES = 2000, 256 << 10

#: One latency in so many is kept.
SAMPLE_EVERY = 8

Message = dict[str, Any]


def make_message(producer: int, sequence: int, noise: bytes) -> Message:
    payload: Any
    if sequence % HUGE_EVERY == HUGE_EVERY - 1:
        payload = noise
    elif sequence % LARGE_EVERY == LARGE_EVERY - 1:
        payload = noise[:LARGE_BYTES]
    else:
        payload = [producer, sequence, "SAGE"]
    return {
        "producer": producer,
        "sequence": sequence,
        "payload": payload,
        "checksum": checksum(payload),
        "sent_ns": time.monotonic_ns(),
    }


def checksum(payload: Any) -> int:
    return zlib.crc32(payload if isinstance(payload, bytes) else repr(payload).encode())


def produce(queue: SageQueue[Message], results: SageQueue[Any], producer: int, messages: int, seconds: float | None) -> None:
    _leave_ctrl_c_to_the_parent()
    noise = random.Random(producer).randbytes(HUGE_BYTES)
    stop = time.monotonic() + seconds if seconds else None
    sent = 0
    try:
        while sent < messages and (stop is None or sent % 64 or time.monotonic() < stop):
            queue.put(make_message(producer, sent, noise))
            sent += 1
    except ShutDown:  # the parent was interrupted
        pass
    results.put(("sent", producer, sent))
    _leave(queue, results)


def consume(queue: SageQueue[Message], results: SageQueue[Any], producers: int) -> None:
    _leave_ctrl_c_to_the_parent()
    seen = [bytearray() for _ in range(producers)]  # per producer: how often each sequence number was seen, up to twice
    last = [-1] * producers
    damaged = disordered = received = 0
    first_ns = last_ns = 0
    latencies = array("q")
    while True:
        try:
            message = queue.get()
        except ShutDown:
            break
        last_ns = time.monotonic_ns()
        first_ns = first_ns or message["sent_ns"]
        received += 1
        if received % SAMPLE_EVERY == 0:
            latencies.append(last_ns - message["sent_ns"])
        producer, sequence = message["producer"], message["sequence"]
        damaged += checksum(message["payload"]) != message["checksum"]
        disordered += sequence <= last[producer]
        last[producer] = sequence
        mark = seen[producer]
        if sequence >= len(mark):
            mark.extend(bytes(sequence + 4096 - len(mark)))
        mark[sequence] += mark[sequence] < 2  # once or more than once; small enough to add up over all consumers
    results.put(
        (
            "received",
            {
                "pid": os.getpid(),
                "received": received,
                "damaged": damaged,
                "disordered": disordered,
                "first_ns": first_ns,
                "last_ns": last_ns,
                "seen": [zlib.compress(mark, 1) for mark in seen],
                "latencies": zlib.compress(latencies.tobytes(), 1),
            },
        )
    )
    _leave(queue, results)


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(*queues: SageQueue[Any]) -> None:
    for queue in queues:
        queue.close()
