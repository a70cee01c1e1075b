"""Floor 3: the command line, `sage-queue` or `python -m sage_queue`.

Typer and Rich are only needed here, so only here are they imported, and late enough to say it well when they are missing.
"""

from __future__ import annotations

import sys


def main() -> None:
    from .._errors import SageQueueError

    try:
        from .app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "click"):
            raise
        print(f"sage-queue needs {missing} for its command line: pip install 'sage-queue[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        app(prog_name="sage-queue")
    except SageQueueError as error:  # it says what is wrong and what to do; where it was raised helps nobody here
        print(f"sage-queue: {error}", file=sys.stderr)
        raise SystemExit(1) from None
