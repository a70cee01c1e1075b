"""`sage-queue demo`: the main job, watched.

Some processes put messages into one queue, others take them out; meanwhile we show the queue's own counters, and at the end we
put together what the consumers have seen.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import zlib
from array import array
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import _native
from .._address import human_bytes, safe
from .._errors import Empty
from .._queue import SageQueue
from . import demo_workers


@dataclass
class Plan:
    producers: int
    consumers: int
    messages: int
    seconds: float | None
    maxsize: int
    start_method: str | None

    def share(self, producer: int) -> int:
        """How many of the messages this producer sends."""
        return self.messages // self.producers + (producer < self.messages % self.producers)


@dataclass
class Report:
    sent: int = 0
    received: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    damaged: int = 0
    bytes: int = 0
    seconds: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    problems: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        wrong = self.lost + self.doubled + self.disordered + self.damaged + len(self.problems) + len(self.left_behind)
        return wrong == 0 and self.received > 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def run(plan: Plan, console: Console) -> Report:
    context: Any = multiprocessing.get_context(plan.start_method)
    queue: SageQueue[Any] = SageQueue(None, plan.maxsize, capacity="16 MiB", label="demo")
    results: SageQueue[Any] = SageQueue(capacity="256 MiB", label="demo")  # of which only what is used takes memory
    files = [_native.path_of(queue._handle), _native.path_of(results._handle)]
    report = Report()
    consumers = [
        context.Process(target=demo_workers.consume, args=(queue, results, plan.producers), name=f"consumer {number}")
        for number in range(plan.consumers)
    ]
    producers = [
        context.Process(
            target=demo_workers.produce, args=(queue, results, number, plan.share(number), plan.seconds), name=f"producer {number}"
        )
        for number in range(plan.producers)
    ]
    started = []
    with queue, results:
        try:
            for process in consumers + producers:
                process.start()
                started.append(process)
            _watch(plan, queue, producers, consumers, console)
        except KeyboardInterrupt:  # what was put before still arrives
            report.problems.append("interrupted")
        queue.shutdown()  # also for a producer that waits for room, and whose consumers have all died
        for process in started:
            process.join()
            if process.exitcode:
                report.problems.append(f"{process.name} ended with exit status {process.exitcode}")
        report.bytes = queue.get_stats()["bytes_got"]
        _account(report, plan, results)
    report.left_behind = [file for file in files if os.path.exists(file)]
    _show(report, plan, console)
    return report


def _watch(plan: Plan, queue: SageQueue[Any], producers: list[Any], consumers: list[Any], console: Console) -> None:
    """Show how it goes until every producer has ended; then let the consumers drain the queue."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.completed:>12,} messages"),
        TextColumn("{task.fields[rate]:>10,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        put = progress.add_task("put", total=plan.messages, rate=0)
        got = progress.add_task("got", total=plan.messages, rate=0)
        before_ns, before = time.monotonic_ns(), (0, 0)
        draining = False
        while any(process.is_alive() for process in consumers):
            time.sleep(0.1)
            if not draining and not any(process.is_alive() for process in producers):
                draining = True
                queue.shutdown()
            stats = queue.get_stats()
            now_ns, now = time.monotonic_ns(), (stats["puts"], stats["gets"])
            for task, count, earlier in zip((put, got), now, before):
                progress.update(task, completed=count, rate=(count - earlier) * 1e9 / (now_ns - before_ns))
            before_ns, before = now_ns, now
        for task, count in zip((put, got), before):
            progress.update(task, total=count, rate=count / max(progress.tasks[task].elapsed or 0, 1e-9))


def _account(report: Report, plan: Plan, results: SageQueue[Any]) -> None:
    """What was sent against what was seen, message by message."""
    sent = [0] * plan.producers
    seen = [b""] * plan.producers
    latencies = array("q")
    first_ns, last_ns = [], []
    reports = 0
    while True:
        try:
            kind, *content = results.get_nowait()
        except Empty:
            break
        reports += 1
        if kind == "sent":
            sent[content[0]] = content[1]
            continue
        (consumer,) = content
        report.received += consumer["received"]
        report.damaged += consumer["damaged"]
        report.disordered += consumer["disordered"]
        latencies.frombytes(zlib.decompress(consumer["latencies"]))
        if consumer["received"]:
            first_ns.append(consumer["first_ns"])
            last_ns.append(consumer["last_ns"])
        seen = [_added(total, zlib.decompress(mark)) for total, mark in zip(seen, consumer["seen"])]
    if reports != plan.producers + plan.consumers:
        report.problems.append(f"{plan.producers + plan.consumers - reports} processes did not report")
    report.sent = sum(sent)
    for count, marks in zip(sent, seen):
        got = len(marks) - marks.count(0)
        report.lost += count - got
        report.doubled += got - marks.count(1)
    if first_ns:
        report.seconds = (max(last_ns) - min(first_ns)) / 1e9
    if latencies:
        ordered = sorted(latencies)
        report.p50_us = ordered[len(ordered) // 2] / 1e3
        report.p99_us = ordered[len(ordered) * 99 // 100] / 1e3


def _added(left: bytes, right: bytes) -> bytes:
    """Byte by byte.  (As two long numbers: no sum here reaches 256, and this takes microseconds.)"""
    size = max(len(left), len(right))
    return (int.from_bytes(left, "little") + int.from_bytes(right, "little")).to_bytes(size, "little")


def _show(report: Report, plan: Plan, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("processes", f"{plan.producers} producers, {plan.consumers} consumers")
    table.add_row("messages", f"{report.received:,} of {report.sent:,} ({human_bytes(report.bytes)})")
    if report.seconds:
        rate = report.received / report.seconds
        table.add_row("throughput", f"{rate:,.0f} messages/s, {human_bytes(int(report.bytes / report.seconds))}/s")
    bound = f"at most {plan.maxsize:,} waiting" if plan.maxsize else "as many waiting as fit"
    us = "µs" if console.encoding.lower().startswith("utf") else "us"
    table.add_row("latency", f"p50 {report.p50_us:,.0f} {us}, p99 {report.p99_us:,.0f} {us}, put to got, at full load ({bound})")
    table.add_row(
        "check",
        f"{report.lost} lost, {report.doubled} doubled, {report.disordered} out of order, {report.damaged} damaged",
    )
    table.add_row("left in memory", safe(", ".join(report.left_behind)) or "nothing")
    for problem in report.problems:
        table.add_row("problem", problem)
    console.print(table)
    if report.good:
        console.print("everything arrived, once and in order", style="bold green")
    else:
        console.print("something went wrong", style="bold red")
