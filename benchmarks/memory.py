"""What each wish for a queue's memory does: python -m benchmarks.memory.

For each way: how long the queue takes to make, the first put of an array, the median of those after it, and the first put after a pause, in
milliseconds; and what the file takes then, in MiB.  A consumer in another process takes the arrays out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

from sage_queue import QueueNoMemory, SageQueue

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "keep_warm": {"keep_warm": True},
    "huge_pages": {"huge_pages": True},
    "prefault": {"prefault": True},
    "prefault, huge_pages": {"prefault": True, "huge_pages": True},
    "lock_memory": {"lock_memory": True},
    "prefault, lock_memory": {"prefault": True, "lock_memory": True},
}


def consume(queue: SageQueue[Any]) -> None:
    for _ in queue:
        pass


def measure(wishes: dict[str, Any], size: int, puts: int, pause: float) -> list[float]:
    array = bytes(size)
    began = time.perf_counter()
    with SageQueue[Any](arena=4 * size, auto_cleanup=True, **wishes) as queue:
        times = [time.perf_counter() - began]
        consumer = get_context("fork").Process(target=consume, args=(queue,))
        consumer.start()

        def put() -> float:
            began = time.perf_counter()
            queue.put(array)
            took = time.perf_counter() - began
            time.sleep(0.01)
            return took

        times.append(put())
        times.append(statistics.median(put() for _ in range(puts)))
        if pause:
            time.sleep(pause)
        times.append(put())
        used = os.stat(queue.get_shared_memory_info()["shm_path"]).st_blocks * 512
        queue.shutdown()
        consumer.join()
    return [1000 * each for each in times] + [used / (1 << 20)]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--mib", type=int, default=16, help="of an array")
    parser.add_argument("--puts", type=int, default=20)
    parser.add_argument("--pause", type=float, default=10, help="seconds")
    wish = parser.parse_args(words)
    print(f"{'':24}{'make':>9}{'first':>9}{'later':>9}{'paused':>9}  ms{'file':>9} MiB")
    for name, wishes in WAYS.items():
        try:
            figures = measure(wishes, wish.mib << 20, wish.puts, wish.pause)
        except QueueNoMemory as error:
            print(f"{name:24}{error}")
            continue
        print(f"{name:24}" + "".join(f"{each:9.2f}" for each in figures[:-1]) + f"    {figures[-1]:9.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
