"""Floor 3: the command line, `sage-queue` or `python -m sage_queue`.

Typer and Rich are only needed here, so only here are they imported, and late enough to say it well when they are missing.

Exit status: 0 all is well, 1 something could not be done, 2 the command line makes no sense.  A mistake of the user's is one line on
stderr, never a traceback.  What comes from shared memory or from the file system may have been written there by anybody, and is shown
through `shown` or `safe` (_address.py) only.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    from .._address import safe

    _print_what_can_be_printed()
    try:
        from .app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "click"):
            raise
        print(f"sage-queue needs {missing} for its command line: pip install typer rich", file=sys.stderr)
        raise SystemExit(2) from None
    try:
        app(prog_name="sage-queue")
    except OSError as error:  # most errors of ours are; where it was raised helps nobody here
        _fail(safe(error.strerror or str(error)))
    except Exception as error:
        from .._errors import SageQueueError

        if not isinstance(error, SageQueueError):
            raise
        _fail(safe(str(error)))


def _fail(text: str) -> None:
    print(f"sage-queue: {text}", file=sys.stderr)
    raise SystemExit(1) from None


def _print_what_can_be_printed() -> None:
    """Whatever the terminal cannot show is escaped, instead of ending the program with UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            if _wants_ascii():
                stream.reconfigure(encoding="ascii")
            stream.reconfigure(errors="backslashreplace")


def _wants_ascii() -> bool:
    """Whether the locale is C or POSIX because the user says so.  Python takes UTF-8 then, as it does where no locale is set at all."""
    if os.environ.get("PYTHONIOENCODING") or sys.flags.utf8_mode and os.environ.get("PYTHONUTF8"):
        return False
    named = os.environ.get("LC_ALL") or _own_lc_ctype() or os.environ.get("LANG", "")
    return named in ("C", "POSIX")


def _own_lc_ctype() -> str | None:
    """LC_CTYPE, unless it may be Python that has set it, because LANG is C (PEP 538)."""
    value = os.environ.get("LC_CTYPE")
    return None if value in ("C.UTF-8", "C.utf8", "UTF-8") else value
