"""The figures as a picture: messages a second by message and topology, and round trips."""

from __future__ import annotations

from typing import Any

from .results import Result


def draw(path: str, machine: dict[str, str], results: list[Result]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: list[tuple[str, str, dict[str, Result]]] = []
    for result in results:
        family, _, rest = result.cell.name.partition("/")
        if family in ("throughput", "singles", "batches"):
            message, topology = rest.split("/")
            kind = "" if family == "throughput" else f", {family}"
            title = f"{message}{kind}: messages a second"
            if title not in (panel[0] for panel in panels):
                panels.append((title, "messages_per_s", {}))
            next(groups for panel, _, groups in panels if panel == title)[topology] = result
        elif family == "pingpong":
            panels.append(("round trip, µs", "p50_us", {"median": result}))
    if not panels:
        raise SystemExit("nothing to plot: only throughput, singles, batches and pingpong have a picture")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, metric, groups) in zip(axes.flat, panels):
        _bars(axis, metric, groups)
        axis.set_title(title)
    figure.suptitle(f"sage_queue {machine['sage_queue']}, {machine['cpu']}, {machine['python']}, {machine['date']}", fontsize="small")
    figure.savefig(path, dpi=150)


def _bars(axis: Any, metric: str, groups: dict[str, Result]) -> None:
    entrants = list(dict.fromkeys(entrant for result in groups.values() for entrant in result.rounds))
    width = 0.8 / len(entrants)
    for number, entrant in enumerate(entrants):
        spreads = {place: spread for place, result in enumerate(groups.values()) if (spread := result.spread(entrant, metric))}
        medians = [spread.median for spread in spreads.values()]
        errors = [
            [spread.median - spread.least for spread in spreads.values()],
            [spread.most - spread.median for spread in spreads.values()],
        ]
        places = [place + (number - (len(entrants) - 1) / 2) * width for place in spreads]
        axis.bar(places, medians, width, yerr=errors, label=entrant, error_kw={"linewidth": 0.8})
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.35)  # room for the legend
    axis.legend(fontsize="x-small", ncols=3, loc="upper center")
