"""Benchmarks: sage_queue beside multiprocessing.Queue, multiprocessing.SimpleQueue and faster-fifo, and the C core alone.

    pip install '.[bench]'
    python -m benchmarks                 # everything, some minutes
    python -m benchmarks --quick         # everything, shorter and noisier
    python -m benchmarks --list          # the cells
    python -m benchmarks --only 'throughput/seed/*' --rounds 9 --json figures.json --plot figures.png

A *cell* is one question, such as "the seed's message, one producer, one consumer".  Its *entrants* answer it in turn, A B C D A B C D,
for as many *rounds* as asked; so a disturbance of the machine meets all of them.  Figures are medians over the rounds, with the
smallest and the largest.  Ratios are taken within each round, and then their median.

From the bottom up: `peers` (one adapter a queue), `watchdog` (a hang ends a measurement, not the benchmark), one module a kind of
measurement (`throughput`, `pingpong`, `calls`, `idle`, `core`), `cells` (what is measured), `results` and `targets`, `report` and
`plot`, and the command line.
"""
