"""Floor 3: the command line, `sage-queue` or `python -m sage_queue`.

Typer and Rich are only needed here, so only here are they imported, and late enough to say it well when they are missing.
"""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(f"sage-queue needs {error.name} for its command line: pip install 'sage-queue[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app(prog_name="sage-queue")
