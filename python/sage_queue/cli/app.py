"""The commands: what they are called, what they take, and how their answers look.  The work is done elsewhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from .. import _by_name, _native
from .._address import human_bytes, login_name, safe, shown
from .._errors import SageQueueError
from . import demo as demo_module, table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text, on any terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
AllUsers = Annotated[
    Optional[bool], typer.Option("--all-users/--own", help="Also queues of other users (root: the default), or only one's own.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sage-queue {_native.VERSION} (layout {_native.LAYOUT})")
        raise typer.Exit(0)


@app.callback()
def queues(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Work queues in shared memory: files in /dev/shm, or in $SAGE_QUEUE_DIR."""


def _check_start_method(value: Optional[str]) -> Optional[str]:
    known = multiprocessing.get_all_start_methods()
    if value is not None and value not in known:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(known)}")
    return value


@app.command()
def demo(
    producers: Annotated[int, typer.Option(min=1, max=1000, help="Producer processes.")] = 4,
    consumers: Annotated[int, typer.Option(min=1, max=100, help="Consumer processes.")] = 4,
    messages: Annotated[int, typer.Option(min=1, help="How many messages to send, all producers together.")] = 1_000_000,
    seconds: Annotated[Optional[float], typer.Option(min=0.1, help="Stop sending after so many seconds.")] = None,
    maxsize: Annotated[int, typer.Option(min=0, help="The most items in the queue at a time; 0: as many as fit.")] = 1000,
    start_method: Annotated[
        Optional[str], typer.Option(callback=_check_start_method, help="How to start processes: fork, spawn or forkserver.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Pass Python objects between processes, and check that every one arrives, once and in order.

    Ends with throughput, latency and the check's result; exit status 1 if anything was lost, doubled, damaged or out of order, or if
    anything stays in shared memory.
    """
    plan = demo_module.Plan(producers, consumers, messages, seconds, maxsize, start_method)
    report = demo_module.run(plan, Console(stderr=json_output, markup=False, emoji=False, highlight=False))
    if json_output:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    raise typer.Exit(0 if report.good else 1)


@app.command()
def ls(
    namespace: Annotated[Optional[str], typer.Option(help="Only queues of this namespace.")] = None,
    all_users: AllUsers = None,
    json_output: Json = False,
) -> None:
    """List queues, also those whose file was deleted while they are in use, as far as /proc shows them.

    Looks at each from outside: attaches to none, changes nothing.  "ring" and "arena" tell how much of the room for small and for
    large messages is taken.  "processes" are the different pids attached (those of several containers may be equal).

    Of other users' queues, those are listed that this user may read; with --all-users, everything that is called as a queue's file is.
    Names that could do something to the terminal are shown with escapes, and `rm` takes them so.
    """
    directory = _native.default_directory()
    found = _native.observe_all(directory)
    everybody = os.geteuid() == 0 if all_users is None else all_users
    chosen = [seen for seen in found if everybody or seen.uid == os.geteuid() or (all_users is None and seen.is_usable)]
    rows = [_describe(seen) for seen in chosen] + [_describe_deleted(*each) for each in _native.deleted_in(directory)]
    if namespace is not None:
        rows = [row for row in rows if row["name"].startswith(namespace + "/")]
    hidden = len(found) - len(chosen)
    if json_output:
        typer.echo(json.dumps([_as_json(row) for row in rows], indent=2))
    elif rows:
        _print_table(rows)
    else:
        typer.echo(f"no queues in {safe(directory)}")
    if hidden and all_users is None:
        files = "file of another user" if hidden == 1 else "files of other users"
        typer.echo(f"{hidden} {files} not shown: --all-users", err=True)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Full names, as `ls` shows them.")],
    all_users: AllUsers = None,
) -> None:
    """Remove queues, with whatever is in them.  Processes that are attached can go on; no other can attach any more."""
    missing = 0
    for name in names:
        try:
            _remove(name, os.geteuid() == 0 if all_users is None else all_users)
        except (SageQueueError, OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            typer.echo(f"{safe(name)}: {safe(text)}", err=True)
            missing += 1
    raise typer.Exit(1 if missing else 0)


def _remove(name: str, all_users: bool) -> None:
    """By the name itself, or as `ls` shows it on some terminal."""
    directory = _native.default_directory()
    named = [
        seen
        for seen in _native.observe_all(directory)
        if name in (_name_of(seen), shown(_name_of(seen)), shown(_name_of(seen), "ascii"))
    ]
    if len(named) > 1:
        files = ", ".join(safe(seen.path) for seen in named)
        raise ValueError(f"this can be more than one queue; remove one of these files: {files}")
    removed = _by_name.remove_observed(named[0], all_users=all_users) if named else _by_name.destroy_queue(name, all_users=all_users)
    if not removed:
        raise ValueError(f"there is no such queue in {directory}")


@app.command()
def gc(all_users: AllUsers = None, json_output: Json = False) -> None:
    """Remove the queues that dead processes left behind: provably in nobody's use, and empty, unnamed or auto-cleanup."""
    removed = _by_name.collect_garbage(all_users=os.geteuid() == 0 if all_users is None else all_users)
    if json_output:
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo(f"removed {removed} queue{'' if removed == 1 else 's'} from {safe(_native.default_directory())}")


# ---- what `ls` tells of each ----


def _name_of(seen: _native.Observation) -> str:
    """The queue's name; of a file that cannot be read, and whose name is cut short, the file's."""
    return seen.file if seen.name is None else seen.name


def _describe_deleted(name: str, pids: list[int]) -> dict[str, Any]:
    """The row of a queue that has no file any more."""
    users = ", ".join(map(str, pids))
    return {"name": name, "file": None, "error": f"its file was deleted while in use by {users}", "pids": pids}


def _describe(seen: _native.Observation) -> dict[str, Any]:
    """The row of a queue, or of what lies in the place of one."""
    row: dict[str, Any] = {
        "name": _name_of(seen),
        "file": seen.file,
        "error": seen.problem(),
        "owner": login_name(seen.uid),
        "mode": f"{seen.mode:04o}",
        "memory_bytes": seen.memory_bytes,
    }
    if seen.info is None or seen.stats is None:
        return row
    info, stats = seen.info, seen.stats
    return {
        **row,
        "state": _state_of(seen.is_attached, stats),
        "items": stats["items"],
        "maxsize": info.maxsize,
        "used_bytes": stats["used_bytes"],
        "capacity": info.capacity,
        "arena": info.arena,
        "arena_used_bytes": stats["arena_used_bytes"],
        "held": stats["held"],
        "leased": stats["leased"],
        "unfinished": stats["unfinished"],
        "processes": seen.processes,
        "handles": seen.handles,
        "dead": seen.dead,
        "serializer": info.tag or "raw",
        "auto_cleanup": info.auto_cleanup,
        "persistent": info.persistent,
        "creator_pid": info.creator_pid,
    }


def _state_of(is_attached: bool, stats: dict[str, int]) -> str:
    if stats["shutdown"]:
        return "draining" if stats["shutdown"] == 1 and stats["items"] else "shut down"
    return "in use" if is_attached else "unused"


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Names that are no UTF-8 cannot stand in JSON: they are escaped as on the terminal."""
    return {key: shown(value) if key in ("name", "file") and not _is_utf8(value) else value for key, value in row.items()}


def _is_utf8(text: str | None) -> bool:
    try:
        return text is None or bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def _shown(text: str) -> str:
    return shown(text, sys.stdout.encoding or "ascii")


def _print_table(rows: list[dict[str, Any]]) -> None:
    me = login_name(os.geteuid())
    with_owner = any(row.get("owner", me) != me for row in rows)
    heads = ["queue", "items", "of", "ring", "arena", "processes", *(["owner"] if with_owner else []), "serializer", "state"]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None  # in a pipe, every line whole
    for line in table.lines_of(heads, [_row_of(row, with_owner) for row in rows], width):
        typer.echo(line)


def _row_of(row: dict[str, Any], with_owner: bool) -> table.Row:
    name = _shown(row["name"])
    if row["error"] or "state" not in row:
        return table.Row(name, safe(row["error"], sys.stdout.encoding or "ascii"), [])
    ring, arena = _share(row["used_bytes"], row["capacity"]), _share(row["arena_used_bytes"], row["arena"])
    ring_size, arena_size = f"{ring} of {human_bytes(row['capacity'])}", f"{arena} of {human_bytes(row['arena'])}" if row["arena"] else arena
    most = f"{row['maxsize']:,}" if row["maxsize"] else "any"
    owner = [_shown(row["owner"])] if with_owner else []
    words = [*owner, _shown(row["serializer"]), row["state"]]
    facts = ", ".join(
        [
            f"{_number(row['items'], 'item')} of {most}",
            f"ring {ring_size}",
            f"arena {arena_size}",
            _number(row["processes"], "process"),
            *words,
        ]
    )
    wide, narrow = (
        [f"{row['items']:,}", most, *fill, str(row["processes"]), *words] for fill in ((ring_size, arena_size), (ring, arena))
    )
    return table.Row(name, facts, [wide, narrow])


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def _share(used: int, size: int) -> str:
    """How full it is.  100% is full, and 0% is empty."""
    if not size:
        return "none"
    percent = min(used * 100 // size, 100)
    return f"{'<1' if used and not percent else percent}%"
