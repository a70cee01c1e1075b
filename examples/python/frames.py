"""Camera-like frames through two stages, without copying them.

    pip install . numpy
    python examples/python/frames.py [FRAMES [MIB]]

A camera process fills each frame in the queue's own memory.  The first stage looks at it there and writes a brightened picture
straight into the next queue; the second changes what it got in place and passes on a few numbers.  Each frame has its number in
every pixel, so that the end can tell whether any was lost, mixed up or torn.
"""

import sys
import time
from multiprocessing import get_context

import numpy as np

from sage_queue import SageQueue, ShutDown


def camera(raw: SageQueue, frames: int, shape: tuple[int, int]) -> None:
    for number in range(frames):
        with raw.reserve_array(shape, np.uint8) as frame:  # uninitialized memory, as from np.empty()
            frame[:] = number % 200
            frame[0, 0] = 255  # one bright spot
    raw.shutdown()


def brighten(raw: SageQueue, bright: SageQueue) -> None:
    try:
        while True:
            frame = raw.get(copy=False)  # read-only, and the camera's memory until the last view of it is gone
            with bright.reserve_array(frame.shape, np.float32) as picture:
                np.multiply(frame, 1.25, out=picture)
            del frame  # before the next get() waits: the camera may be waiting for this room
    except ShutDown:
        bright.shutdown()


def measure(bright: SageQueue, results: SageQueue) -> None:
    try:
        while True:
            picture = bright.get(copy=False, writable=True)  # ours now, to be written as we like
            spot = float(picture.max())
            picture[0, 0] = picture[1, 1]
            picture -= picture[1, 1]
            results.put((spot, float(np.abs(picture).max())))
            del picture
    except ShutDown:
        results.shutdown()


def main(frames: int = 20, mib: int = 16) -> None:
    shape = (mib * 1024, 1024)
    context = get_context("spawn")
    # Room for three frames in each queue; with maxsize, whoever is faster waits for the others.
    with (
        SageQueue(maxsize=2, arena=3 * shape[0] * shape[1] + (1 << 20)) as raw,
        SageQueue(maxsize=2, arena=3 * 4 * shape[0] * shape[1] + (1 << 20)) as bright,
        SageQueue() as results,
    ):
        stages = [
            context.Process(target=camera, args=(raw, frames, shape)),
            context.Process(target=brighten, args=(raw, bright)),
            context.Process(target=measure, args=(bright, results)),
        ]
        start = time.monotonic()
        for stage in stages:
            stage.start()
        seen = 0
        try:
            while True:
                spot, rest = results.get()
                assert spot == 255 * 1.25 and rest == 0, (seen, spot, rest)
                seen += 1
        except ShutDown:
            took = time.monotonic() - start
        for stage in stages:
            stage.join()
        assert seen == frames, (seen, frames)
        assert [stage.exitcode for stage in stages] == [0, 0, 0]
        for queue in (raw, bright):
            stats = queue.get_stats()
            assert (stats["held"], stats["reserved"], stats["arena_used_bytes"]) == (0, 0, 0), stats
    print(f"{seen} frames of {mib} MiB through two stages in {took:.1f} s, none lost, none torn, nothing left in memory")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
