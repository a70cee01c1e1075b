"""A work queue whose workers are killed at random, and where every job is done.

    pip install .
    python examples/python/jobs.py [JOBS]

Workers lease jobs.  A job that is not acknowledged, because its worker was killed (kill -9) or the work failed, goes to another one,
with its attempts counted.  What fails five times moves to a second queue.  A worker that dies between finishing a job and
acknowledging it makes the job run twice: so results are noted by number, and doing one again changes nothing.
"""

import os
import random
import signal
import sys
import time
from multiprocessing import get_context

from sage_queue import SageQueue, ShutDown, open_queue

WORKERS, CURSED = 4, 13  # one job fails wherever it goes


def work(jobs: SageQueue, results: SageQueue) -> None:
    chance = random.Random(os.getpid())
    while True:
        try:
            with jobs.lease() as message:  # leaving acknowledges, an exception gives the job back
                number, text = message.value
                if number == CURSED:
                    raise RuntimeError("this one never works")
                time.sleep(chance.random() * 0.002)
                results.put((number, len(text), message.attempts))
        except RuntimeError:
            continue
        except ShutDown:
            return


def main(count: int = 300) -> None:
    context = get_context("spawn" if sys.platform == "darwin" else "fork")
    name = f"jobs-{os.getpid()}"
    done: dict[int, int] = {}  # job -> at which attempt
    kills = 0
    with SageQueue(name, max_attempts=5, dead_letter=f"{name}-failed") as jobs, SageQueue() as results:

        def hire():
            worker = context.Process(target=work, args=(jobs, results))
            worker.start()
            return worker

        workers = [hire() for _ in range(WORKERS)]
        for number in range(count):
            jobs.put((number, "x" * (10 ** (number % 6))))  # from 1 byte to 100 kB
        while jobs.get_stats()["unfinished"]:  # what is leased and not acknowledged counts, too
            if len(done) < count * 3 // 4:
                random.choice(workers).kill()
                kills += 1
            for index, worker in enumerate(workers):
                if not worker.is_alive():
                    workers[index] = hire()
            time.sleep(random.random() * 0.02)
            while not results.empty():
                number, length, attempts = results.get()
                assert length == 10 ** (number % 6)
                done[number] = attempts
        jobs.shutdown()  # only now, when nothing can come back any more
        for worker in workers:
            worker.join()
        while not results.empty():
            number, length, attempts = results.get()
            done[number] = attempts
        stats = jobs.get_stats()
        with open_queue(f"{name}-failed") as failed:
            letters = [failed.get()[0] for _ in range(failed.qsize())]
    assert set(done) | set(letters) == set(range(count)), sorted(set(range(count)) - set(done) - set(letters))
    assert CURSED in letters
    assert (stats["items"], stats["leased"], stats["arena_used_bytes"]) == (0, 0, 0), stats
    print(f"{len(done)} jobs done in spite of {kills} kills, at up to {max(done.values())} attempts; moved away: {letters}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main(*map(int, sys.argv[1:]))
