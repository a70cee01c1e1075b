"""What was measured, and what can be said about it: medians, spreads, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .cells import BASELINE, Cell
from .watchdog import Figures, Trouble, run


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: list[float]) -> Spread | None:
        return Spread(statistics.median(values), min(values), max(values)) if values else None


@dataclass
class Result:
    """One cell's figures: for every entrant one entry a round, None where it gave none."""

    cell: Cell
    rounds: dict[str, list[Figures | None]]
    trouble: dict[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return next((list(figures) for rounds in self.rounds.values() for figures in rounds if figures), [])

    def spread(self, entrant: str, metric: str) -> Spread | None:
        return Spread.of([figures[metric] for figures in self.rounds.get(entrant, []) if figures and metric in figures])

    def ratio(self, entrant: str, metric: str, ours: str = BASELINE) -> Spread | None:
        """Ours divided by this entrant's, round by round."""
        pairs = zip(self.rounds.get(ours, []), self.rounds.get(entrant, []))
        return Spread.of([one[metric] / its[metric] for one, its in pairs if one and its and metric in one and its.get(metric)])

    def as_json(self) -> dict[str, Any]:
        entrants = {}
        for entrant, rounds in self.rounds.items():
            summary = {}
            for metric in self.metrics:
                spread, ratio = self.spread(entrant, metric), self.ratio(entrant, metric)
                summary[metric] = {
                    **(vars(spread) if spread else {}),
                    "ours_divided_by_this": vars(ratio) if ratio else None,
                }
            entrants[entrant] = {"trouble": self.trouble.get(entrant), "summary": summary, "rounds": rounds}
        return {"name": self.cell.name, "entrants": entrants}


def measure(cell: Cell, say: Callable[[str], None]) -> Result:
    """All rounds of a cell.  An entrant that hung or failed once is left out from then on."""
    result = Result(cell, {entrant: [] for entrant in cell.entrants})
    for _ in range(cell.rounds):
        for entrant, measurement in cell.entrants.items():
            figures = None
            if entrant not in result.trouble:
                try:
                    figures = run(measurement, cell.limit_s)
                except Trouble as trouble:
                    result.trouble[entrant] = str(trouble)
                    say(f"{cell.name}: {entrant} {trouble}")
            result.rounds[entrant].append(figures)
    return result
