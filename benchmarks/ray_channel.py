"""Ray's experimental channel: one writer and one reader on a node, the reader's array a view on shared memory.

Not a queue: it holds one value, and a write waits until the reader has let go of the last.  It runs in this process and an actor.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import logging
import os
import time
from typing import Any

from . import arrays
from .peers import PENDING
from .watchdog import Figures

NAME = "Ray channel"


def missing() -> str | None:
    return None if importlib.util.find_spec("ray") else "not installed"


def version() -> str:
    return importlib.metadata.version("ray")


def throughput(size_bytes: int, seconds: float) -> Figures:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.experimental.channel.shared_memory_channel import Channel

    @ray.remote(num_cpus=0)
    class Reader:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

        def read(self, channel: Channel) -> tuple[int, int]:
            count = 0
            while True:
                array = channel.read(timeout=30)
                first, last = float(array[0]), float(array[-1])
                del array
                if first == -1:
                    return count, time.monotonic_ns()
                count += 1
                if first != last or first != count % (1 << 24):
                    raise AssertionError(f"array {count} has {first}, {last} at its ends")

    ray.init(num_cpus=2, object_store_memory=512 << 20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        reader: Any = Reader.remote()  # type: ignore[attr-defined]
        channel = Channel(None, [(reader, ray.get(reader.node.remote()))], size_bytes + (1 << 20))
        answer = reader.read.remote(channel)
        turns = itertools.cycle([arrays.new_array(size_bytes) for _ in range(PENDING + 4)])
        started_ns, end_s = 0, None
        for sequence, array in enumerate(turns, 1):
            array[0] = array[-1] = sequence
            channel.write(array, timeout=30)
            if sequence == arrays.WARM_UP:
                started_ns, end_s = time.monotonic_ns(), time.monotonic() + seconds
            elif end_s is not None and time.monotonic() > end_s:
                break
        array[0] = array[-1] = -1
        channel.write(array, timeout=30)
        count, ended_ns = ray.get(answer)
    finally:
        ray.shutdown()
    timed = count - arrays.WARM_UP
    elapsed_s = (ended_ns - started_ns) * 1e-9
    return {"arrays_per_s": timed / elapsed_s, "gb_per_s": timed * size_bytes / elapsed_s / 1e9, "messages": timed}
