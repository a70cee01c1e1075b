"""Ray's queue, ray.util.queue: an actor with an asyncio.Queue in it.  The producer is this process, the consumer an actor."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from typing import Any

from .peers import BATCH
from .watchdog import Figures

NAME = "Ray queue"


def missing() -> str | None:
    return None if importlib.util.find_spec("ray") else "not installed"


def throughput(message: Any, seconds: float, batches: bool) -> Figures:
    """Every message carries its sequence, and the consumer checks that it has all of them in order."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.util.queue import Empty, Queue

    @ray.remote(num_cpus=0)
    class Consumer:
        def begin(self) -> None:
            pass

        def consume(self, queue: Any, message: Any) -> tuple[int, int]:
            count = 0
            while True:
                try:
                    items = queue.get_nowait_batch(BATCH) if batches else [queue.get()]
                except Empty:
                    continue
                for sequence, payload in items:
                    if sequence == -1:
                        return count, time.monotonic_ns()
                    if (sequence, payload) != (count, message):
                        raise AssertionError(f"message {sequence} came as number {count}")
                    count += 1

    ray.init(num_cpus=2, object_store_memory=256 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        queue = Queue(actor_options={"num_cpus": 0})
        consumer: Any = Consumer.remote()  # type: ignore[attr-defined]
        ray.get(consumer.begin.remote())
        queue.qsize()  # both actors are there
        answer = consumer.consume.remote(queue, message)
        started_ns, end_s = time.monotonic_ns(), time.monotonic() + seconds
        sequence = 0
        while time.monotonic() < end_s:
            if batches:
                queue.put_nowait_batch([(number, message) for number in range(sequence, sequence + BATCH)])
                sequence += BATCH
            else:
                queue.put((sequence, message))
                sequence += 1
        if batches:
            queue.put_nowait_batch([(-1, None)] * BATCH)
        else:
            queue.put((-1, None))
        count, ended_ns = ray.get(answer)
    finally:
        ray.shutdown()
    if count != sequence:
        raise AssertionError(f"{sequence} put, {count} got")
    elapsed_s = (ended_ns - started_ns) * 1e-9
    return {"messages_per_s": count / elapsed_s, "messages": count, "seconds": elapsed_s}
