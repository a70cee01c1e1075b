"""What the project asks of itself, held against the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import ray_channel
from .cells import ARRAYS, BASELINE, BUCKETS, C_CORE, FUTEX, MANY_TASKS, PAUSES_S, PLAIN_CALLS
from .peers import BytesHyperQ, FasterFifo, QuickQueue, SageViews, StandardQueue, Zmq
from .results import Result


@dataclass(frozen=True)
class Target:
    says: str
    cell: str
    value: Callable[[Result], float | None]
    holds: Callable[[float], bool]


def _median(entrant: str, metric: str) -> Callable[[Result], float | None]:
    return lambda result: spread.median if (spread := result.spread(entrant, metric)) else None


def _ratio(entrant: str, metric: str) -> Callable[[Result], float | None]:
    return lambda result: ratio.median if (ratio := result.ratio(entrant, metric)) else None


def _views_ratio(entrant: str, metric: str) -> Callable[[Result], float | None]:
    return lambda result: ratio.median if (ratio := result.ratio(entrant, metric, SageViews.name)) else None


def _at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


def _at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def _below(bound: float) -> Callable[[float], bool]:
    return lambda value: value < bound


TARGETS = (
    *(
        target
        for size in ARRAYS
        for target in (
            Target(
                f"arrays of {size}: at least 10 x multiprocessing.Queue",
                f"arrays/{size}/1P1C",
                _ratio(StandardQueue.name, "arrays_per_s"),
                _at_least(10),
            ),
            Target(
                f"arrays of {size}: at least 4 x faster-fifo",
                f"arrays/{size}/1P1C",
                _ratio(FasterFifo.name, "arrays_per_s"),
                _at_least(4),
            ),
            Target(
                f"arrays of {size}, views: at least Ray's channel",
                f"arrays/{size}/1P1C",
                _views_ratio(ray_channel.NAME, "arrays_per_s"),
                _at_least(1),
            ),
        )
    ),
    Target("a put of 16 MiB: at most 1.3 copies", "costs/16MiB", _median(BASELINE, "put_copies"), _at_most(1.3)),
    Target("a view of 16 MiB: at most 0.05 copies", "costs/16MiB", _median(BASELINE, "view_copies"), _at_most(0.05)),
    Target("put + get of 16 MiB: at most 2.6 copies", "costs/16MiB", _median(BASELINE, "put_get_copies"), _at_most(2.6)),
    Target(
        "seed's message 1P1C: at least 3 x faster-fifo",
        "throughput/seed/1P1C",
        _ratio(FasterFifo.name, "messages_per_s"),
        _at_least(3),
    ),
    Target(
        "seed's message 1P1C: at least 4 x multiprocessing.Queue",
        "throughput/seed/1P1C",
        _ratio(StandardQueue.name, "messages_per_s"),
        _at_least(4),
    ),
    Target(
        "ping-pong p50: at most 0.15 of multiprocessing.Queue",
        "pingpong",
        _ratio(StandardQueue.name, "p50_us"),
        _at_most(0.15),
    ),
    Target("ping-pong p50: below a bare futex", "pingpong", _ratio(FUTEX, "p50_us"), _below(1)),
    Target("a put and a get besides pickling: at most 600 ns", "calls/seed", _median(BASELINE, "overhead_ns"), _at_most(600)),
    *(
        Target(
            f"batches of the seed's message 1P1C: at least {name} (aim: 1.3 x)",
            "batches/seed/1P1C",
            _ratio(name, "messages_per_s"),
            _at_least(1),
        )
        for name in (QuickQueue.name, BUCKETS)
    ),
    *(
        Target(
            f"{says}: at least 3 x faster-fifo's get_many",
            cell,
            _ratio(FasterFifo.name, "messages_per_s"),
            _at_least(3),
        )
        for cell, says in (
            ("batches/seed/4P1C", "put_many and get_many of the seed's message 4P1C"),
            ("batches/seed/4P1C-put-singly", "put and get_many of the seed's message 4P1C"),
        )
    ),
    Target(
        "batches of 64 raw bytes 1P1C: at least 2 x BytesHyperQ's single calls",
        "batches/raw64B/1P1C",
        _ratio(BytesHyperQ.name, "messages_per_s"),
        _at_least(2),
    ),
    *(
        target
        for topology in ("1P1C", "4P4C")
        for target in (
            Target(
                f"seed's message singly {topology}: at least 1.2 x pyzmq",
                f"singles/seed/{topology}",
                _ratio(Zmq.name, "messages_per_s"),
                _at_least(1.2),
            ),
            Target(
                f"64 raw bytes singly {topology}: at least BytesHyperQ",
                f"singles/raw64B/{topology}",
                _ratio(BytesHyperQ.name, "messages_per_s"),
                _at_least(1),
            ),
        )
    ),
    *(
        Target(
            f"asyncio, messages {pace}, {way} p50: at most 2 x plain calls",
            f"asyncio/latency/{pace}",
            _ratio(PLAIN_CALLS, metric),
            _at_most(2),
        )
        for pace in PAUSES_S
        for way, metric in (("one way", "one_way_p50_us"), ("round trip", "p50_us"))
    ),
    Target(
        f"CPU of {MANY_TASKS} waiting tasks: below 0.2 %",
        f"asyncio/idle/{MANY_TASKS}",
        _median(BASELINE, "idle_tasks_cpu_percent"),
        _below(0.2),
    ),
    Target("CPU of a blocked get: below 0.2 %", "idle", _median(BASELINE, "idle_cpu_percent"), _below(0.2)),
    Target("C core 64 B 1P1C: at least 15 M msg/s", "core/64B/1P1C", _median(C_CORE, "messages_per_s"), _at_least(15e6)),
    Target("C core 64 B 4P4C: at least 10 M msg/s", "core/64B/4P4C", _median(C_CORE, "messages_per_s"), _at_least(10e6)),
)


def judge(results: list[Result]) -> Iterator[tuple[Target, float, bool]]:
    """The targets that were measured, what came out, and whether they hold."""
    by_name = {result.cell.name: result for result in results}
    for target in TARGETS:
        if target.cell in by_name:
            value = target.value(by_name[target.cell])
            if value is not None:
                yield target, value, target.holds(value)
