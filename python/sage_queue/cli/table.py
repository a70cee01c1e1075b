"""How a table looks on a terminal of whatever width: plain text, one line a row, or, where that does not fit, a few."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rich.cells import cell_len

NAME_LEAST = 16  #: with less room than this for names it is no table any more


@dataclass
class Row:
    """Cells come in versions, the widest first; `facts` is the row as a sentence.  One without cells is the sentence alone."""

    name: str
    facts: str
    versions: list[list[str]]


def lines_of(heads: list[str], rows: list[Row], width: int | None) -> list[str]:
    """`heads` has that of the name first.  Width None: any."""
    with_cells = [row for row in rows if row.versions]
    if not with_cells:
        return _sentences(rows, width)
    for version in range(len(with_cells[0].versions)):
        table = [heads[1:], *(row.versions[version] for row in with_cells)]
        widths = [max(cell_len(cells[column]) for cells in table) for column in range(len(heads) - 1)]
        beside = sum(2 + size for size in widths)
        if width is None or beside + NAME_LEAST <= width:
            return _table(heads, rows, version, widths, None if width is None else width - beside) + _sentences(
                [row for row in rows if not row.versions], width
            )
    return _sentences(rows, width)


def _table(heads: list[str], rows: list[Row], version: int, widths: list[int], room: int | None) -> list[str]:
    shown = [(heads[0], heads[1:]), *((row.name, row.versions[version]) for row in rows if row.versions)]
    longest = max(cell_len(name) for name, _ in shown)
    name_width = longest if room is None else min(longest, room)
    lines = []
    for name, cells in shown:
        # Numbers to the right, under one another; the last column is of words.
        rest = "  ".join([*(" " * (size - cell_len(cell)) + cell for cell, size in zip(cells[:-1], widths)), cells[-1]])
        if cell_len(name) > name_width:  # a name stays whole, on a line of its own
            lines.append(name)
            name = ""
        lines.append(f"{name}{' ' * (name_width - cell_len(name))}  {rest}")
    return lines


def _sentences(rows: list[Row], width: int | None) -> list[str]:
    lines = []
    for row in rows:
        line = f"{row.name}  {row.facts}"
        if width is None or cell_len(line) <= width:
            lines.append(line)
        else:
            lines += [row.name, *textwrap.wrap(row.facts, width, initial_indent="  ", subsequent_indent="  ")]
    return lines
