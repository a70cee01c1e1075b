"""The command line: python -m benchmarks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch

from rich.console import Console

import sage_queue

from . import arrays, machine, ray_channel, ray_queue, report, results
from .cells import BASELINE, NORMAL, QUICK, Cell, catalogue, needs_program
from .core import Program
from .peers import PEERS, SPECIALISTS


def main(words: Sequence[str] | None = None) -> int:
    """0: all of ours worked; 1: one of ours hung, failed or lost something."""
    options = _options(words)
    out = report.console()
    settings = QUICK if options.quick else NORMAL
    if options.rounds:
        settings = dataclasses.replace(settings, rounds=options.rounds)

    program = Program()
    everybody = (*PEERS, *SPECIALISTS)
    others = [("the C programs", program.missing()), ("large arrays", arrays.missing())]
    others += [(module.NAME, module.missing()) for module in (ray_channel, ray_queue)]
    for missing_name, why in [(peer.name, peer.missing()) for peer in everybody] + others:
        if why:
            out.print(f"skipped: {missing_name} ({why})", style="yellow")
    peers = [peer for peer in everybody if not peer.missing()]
    cells = [cell for cell in catalogue(settings, peers, program) if _chosen(cell, options.only)]
    if not cells:
        raise SystemExit("no cell is called that; --list shows them")
    if options.list:
        for cell in cells:
            out.print(cell.name)
        return 0

    description = machine.describe(peers)
    try:
        if any(needs_program(cell) for cell in cells):
            program.build()
        found = _measure_all(out, cells)
    finally:
        program.close()
        sage_queue.collect_garbage()  # what a measurement that was ended left behind

    report.show(out, description, found)
    if options.json:
        with open(options.json, "w") as file:
            answer = {"machine": description, "settings": vars(settings), "cells": [result.as_json() for result in found]}
            json.dump(answer, file, indent=1)
    if options.plot:
        from . import plot

        plot.draw(options.plot, description, found)
    return 1 if any(BASELINE in result.trouble for result in found) else 0


def _measure_all(out: Console, cells: list[Cell]) -> list[results.Result]:
    found = []
    for number, cell in enumerate(cells, start=1):
        start_s = time.monotonic()
        found.append(results.measure(cell, lambda text: out.print(text, style="red", markup=False)))
        out.print(f"{number:3}/{len(cells)}  {cell.name:26} {time.monotonic() - start_s:6.1f} s", style="dim")
    return found


def _chosen(cell: Cell, patterns: list[str] | None) -> bool:
    return not patterns or any(fnmatch(cell.name, pattern) or cell.family == pattern for pattern in patterns)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="sage_queue beside other queues, and its C core alone")
    parser.add_argument("--quick", action="store_true", help="shorter and noisier")
    parser.add_argument("--only", action="append", metavar="NAME", help="a cell, a family, or a pattern such as '*/1P1C'; may be repeated")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often every cell is measured")
    parser.add_argument("--json", metavar="FILE", help="write every figure of every round")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture, with matplotlib")
    parser.add_argument("--list", action="store_true", help="only list the cells")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
