"""Benchmarks: sage_queue beside multiprocessing.Queue, SimpleQueue, faster-fifo and others, and the C core alone.

    pip install '.[bench]'
    python -m benchmarks                 # everything, some minutes
    python -m benchmarks --quick         # everything, shorter and noisier
    python -m benchmarks --list          # the cells
    python -m benchmarks --only 'throughput/seed/*' --rounds 9 --json figures.json --plot figures.png

A *cell* is one question, such as "the seed's message, one producer, one consumer".  Its *entrants* answer it in turn, A B C D A B C D,
for as many *rounds* as asked; so a disturbance of the machine meets all of them.  Figures are medians over the rounds, with the
smallest and the largest.  Ratios are taken within each round, and then their median.

From the bottom up: `peers` (one adapter a queue), `watchdog` (a hang ends a measurement, not the benchmark), one module a kind of
measurement (`throughput`, `pingpong`, `event_loop`, `calls`, `arrays`, `idle`, `core`, and Ray's `ray_channel` and `ray_queue`),
`cells` (what is measured), `results` and `targets`, `report` and `plot`, and the command line.

Some families answer a question of their own, beside those who are said to be best at it:

    singles  one message a call: pyzmq (ipc, pickle), HyperQ; bytes as they are: BytesHyperQ
    batches  100 messages a call: quick-queue, faster-fifo; bytes as they are: BytesHyperQ, which has no batches
    asyncio  coroutines beside plain calls, and pyzmq's coroutines
    calls    what a message costs in one process, singly and in batches
"""
