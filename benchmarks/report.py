"""The figures as tables to read."""

from __future__ import annotations

import sys
from itertools import groupby

from rich.console import Console
from rich.table import Table

from .cells import BASELINE
from .results import Result, Spread
from .targets import judge

#: The metrics that are shown, how to head them, and their unit.  JSON has all of them.
METRICS = {
    "messages_per_s": ("messages a second", ""),
    "cpu_us_per_message": ("CPU time a message, all processes", " µs"),
    "p50_us": ("round trip, median", " µs"),
    "p99_us": ("round trip, p99", " µs"),
    "p999_us": ("round trip, p99.9", " µs"),
    "one_way_p50_us": ("one way, median", " µs"),
    "one_way_p99_us": ("one way, p99", " µs"),
    "overhead_ns": ("put + get of a message besides pickling", " ns"),
    "pair_ns": ("put + get of a message", " ns"),
    "pickle_ns": ("pickling alone", " ns"),
    "arrays_per_s": ("arrays a second", ""),
    "gb_per_s": ("bytes a second", " GB"),
    "put_copies": ("put, in copies of the array", ""),
    "view_copies": ("get(copy=False), in copies", ""),
    "put_get_copies": ("put + get, in copies", ""),
    "first_put_copies": ("the first put, in copies", ""),
    "copy_us": ("one copy", " µs"),
    "idle_cpu_percent": ("CPU while blocked in get()", " %"),
    "idle_tasks_cpu_percent": ("CPU while all tasks wait", " %"),
}


def console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 170)


def show(out: Console, machine: dict[str, str], results: list[Result]) -> None:
    for key, fact in machine.items():
        out.print(f"{key:14} {fact}", markup=False)
    for _, family in groupby(results, key=lambda result: result.cell.family):
        out.print(_table(list(family)))
    out.print(rf"Medians \[smallest – largest] over the rounds.  × is {BASELINE} divided by this one, the median of the rounds' ratios.")
    for target, value, holds in judge(results):
        out.print("[green]met   [/green]" if holds else "[red]missed[/red]", f"{target.says}: {value:.3g}")


def _table(results: list[Result]) -> Table:
    entrants = list(dict.fromkeys(entrant for result in results for entrant in result.rounds))
    table = Table("", *entrants, title=results[0].cell.family, title_justify="left")
    metrics = dict.fromkeys(metric for result in results for metric in result.metrics if metric in METRICS)
    for metric in metrics:
        title, unit = METRICS[metric]
        table.add_section()
        table.add_row(f"[bold]{title}")
        for result in results:
            if metric in result.metrics:
                table.add_row(result.cell.name, *(_figure(result, entrant, metric, unit) for entrant in entrants))
    if not metrics:
        for result in results:
            table.add_row(result.cell.name, *(_trouble(result, entrant) for entrant in entrants))
    return table


def _figure(result: Result, entrant: str, metric: str, unit: str) -> str:
    spread = result.spread(entrant, metric)
    if spread is None:
        return _trouble(result, entrant)
    text = f"{_number(spread.median, unit)} [dim]{_range(spread, unit)}[/dim]"
    ratio = result.ratio(entrant, metric) if entrant != BASELINE else None
    if ratio:
        text += f"\n× {_number(ratio.median)} [dim]{_range(ratio)}[/dim]"
    if entrant in result.trouble:
        text += f"\n{_trouble(result, entrant)}"
    return text


def _trouble(result: Result, entrant: str) -> str:
    trouble = result.trouble.get(entrant, "")
    return f"[red]{trouble.partition(':')[0]}[/red]"


def _range(spread: Spread, unit: str = "") -> str:
    least, most = (_number(value, unit).removesuffix(unit) for value in (spread.least, spread.most))
    return rf"\[{least} – {most}]".replace(" ", "\N{NO-BREAK SPACE}")


def _number(value: float, unit: str = "") -> str:
    """Three digits that count: 0.00123, 12.3; 45.6 k and 7.89 M if there is no unit, else 45600 ns."""
    for factor, suffix in ((1e6, " M"), (1e3, " k")):
        if value >= factor and not unit:
            return f"{value / factor:#.3g}".rstrip(".") + suffix
    return (f"{value:.0f}" if value >= 1e3 else f"{value:.3g}") + unit
