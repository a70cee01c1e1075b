"""A pipeline of Ray actors: two read, three work, one collects, and Ray carries only the queues.

    pip install '.[ray]'
    python examples/python/ray_pipeline.py

Ray starts the actors and passes them the two queues; every message then goes through shared memory.  So the actors must be where
the queues are: near() sees to that in a cluster of several nodes.
"""

import ray

from sage_queue import SageQueue, ShutDown
from sage_queue.ray import near

READERS, WORKERS, LINES_EACH = 2, 3, 5_000


@ray.remote(num_cpus=0)
class Reader:
    def read(self, reader: int, lines: SageQueue) -> int:
        for number in range(LINES_EACH):
            lines.put({"reader": reader, "number": number, "text": f"line {number} of reader {reader}"})
        return LINES_EACH


@ray.remote(num_cpus=0)
class Worker:
    def work(self, lines: SageQueue, lengths: SageQueue) -> int:
        done = 0
        try:
            while True:
                line = lines.get()
                lengths.put((line["reader"], line["number"], len(line["text"])))
                done += 1
        except ShutDown:  # nothing left, and nothing more to come
            return done


@ray.remote(num_cpus=0)
class Collector:
    def collect(self, lengths: SageQueue) -> tuple[int, int]:
        seen, characters = set(), 0
        try:
            while True:
                reader, number, length = lengths.get()
                seen.add((reader, number))
                characters += length
        except ShutDown:
            return len(seen), characters


def main() -> None:
    # A maxsize makes fast stages wait for slow ones, instead of filling memory.
    # The queues are outside Ray's `with`: at its end Ray kills its workers, and whoever leaves a queue last removes it.
    with SageQueue(maxsize=1000) as lines, SageQueue(maxsize=1000) as lengths, ray.init(logging_level="warning"):
        here = near(lines)
        collector = Collector.options(**here).remote()
        collected = collector.collect.remote(lengths)
        workers = [Worker.options(**here).remote() for _ in range(WORKERS)]
        worked = [worker.work.remote(lines, lengths) for worker in workers]
        readers = [Reader.options(**here).remote() for _ in range(READERS)]
        read = sum(ray.get([reader.read.remote(number, lines) for number, reader in enumerate(readers)]))
        lines.shutdown()  # the workers finish what is there, then end
        done = ray.get(worked)
        lengths.shutdown()
        seen, characters = ray.get(collected)
    assert read == sum(done) == seen, (read, done, seen)
    print(f"{read} lines read, {' + '.join(map(str, done))} worked on, {seen} collected: {characters} characters")


if __name__ == "__main__":
    main()
