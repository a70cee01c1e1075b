"""The commands: what they are called, what they take, and how their answers look.  The work is done elsewhere."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from .. import _by_name, _native
from .._address import human_bytes
from .._errors import SageQueueError
from . import demo as demo_module

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Work queues in shared memory.", pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


@app.command()
def demo(
    producers: Annotated[int, typer.Option(min=1, help="Producer processes.")] = 4,
    consumers: Annotated[int, typer.Option(min=1, max=100, help="Consumer processes.")] = 4,
    messages: Annotated[int, typer.Option(min=1, help="How many messages to send, all producers together.")] = 1_000_000,
    seconds: Annotated[Optional[float], typer.Option(min=0.1, help="Stop sending after so many seconds.")] = None,
    maxsize: Annotated[int, typer.Option(min=0, help="The most items in the queue at a time; 0: as many as fit.")] = 1000,
    start_method: Annotated[Optional[str], typer.Option(help="How to start processes: fork, spawn or forkserver.")] = None,
    json_output: Json = False,
) -> None:
    """Pass Python objects between processes, and check that every one arrives, once and in order.

    Ends with throughput, latency and the check's result; exit status 1 if anything was lost, doubled, damaged or out of order, or if
    anything stays in shared memory.
    """
    plan = demo_module.Plan(producers, consumers, messages, seconds, maxsize, start_method)
    report = demo_module.run(plan, Console(stderr=json_output))
    if json_output:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    raise typer.Exit(0 if report.good else 1)


@app.command()
def ls(
    namespace: Annotated[Optional[str], typer.Option(help="Only queues of this namespace.")] = None,
    json_output: Json = False,
) -> None:
    """List the queues of this machine, also those whose file somebody has deleted while they are in use, as far as /proc shows them."""
    directory = _native.default_directory()
    rows = [*map(_describe, _queues(directory)), *map(_describe_deleted, _native.deleted_in(directory))]
    rows = [row for row in rows if namespace is None or row["name"].startswith(namespace + "/")]
    if json_output:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(f"no queues in {directory}")
        return
    table = Table("queue", "items", "of", "in use", "of", "processes", "serializer", box=None, pad_edge=False, header_style="bold")
    table.columns[0].overflow = "fold"
    for column in (1, 2, 3, 4, 5):
        table.columns[column].justify = "right"
    for row in rows:
        if row["error"]:
            table.add_row(row["name"], f"[red]{row['error']}[/red]")
            continue
        table.add_row(
            row["name"],
            f"{row['items']:,}",
            f"{row['maxsize']:,}" if row["maxsize"] else "any",
            human_bytes(row["used_bytes"]),
            human_bytes(row["capacity"]),
            str(row["processes"]),
            row["serializer"],
        )
    console = Console()
    if not console.is_terminal:
        console.width = 2000  # who reads it from a pipe wants every name whole
    console.print(table)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Full names, as `ls` shows them.")],
) -> None:
    """Remove queues, with whatever is in them.  Processes that are attached can go on; nobody else can attach any more."""
    missing = 0
    for name in names:
        try:
            removed = _by_name.destroy_queue(name)
        except (SageQueueError, ValueError) as error:
            typer.echo(f"{name}: {error}", err=True)
            missing += 1
            continue
        if not removed:
            typer.echo(f"{name}: there is no such queue in {_native.default_directory()}", err=True)
            missing += 1
    raise typer.Exit(1 if missing else 0)


@app.command()
def gc(json_output: Json = False) -> None:
    """Remove the queues that dead processes left behind: provably in nobody's use, and empty, unnamed or auto-cleanup."""
    removed = _by_name.collect_garbage()
    if json_output:
        typer.echo(json.dumps({"removed": removed}))
    else:
        typer.echo(f"removed {removed} queue{'' if removed == 1 else 's'} from {_native.default_directory()}")


def _queues(directory: str) -> list[tuple[str, str | None]]:
    return _native.names_in(directory)


def _describe_deleted(found: tuple[str, list[int]]) -> dict[str, Any]:
    """The line of `ls` for a queue that has no file any more."""
    name, pids = found
    users = ", ".join(map(str, pids))
    return {"name": name, "file": None, "error": f"its file was deleted while in use by {users}", "pids": pids}


def _describe(found: tuple[str, str | None]) -> dict[str, Any]:
    """One queue's line of `ls`.  What cannot be opened is shown with the reason."""
    file, name = found
    row: dict[str, Any] = {"name": file if name is None else name, "file": file, "error": None}
    if name is None:
        return {**row, "error": "the name is longer than the file name can tell"}
    try:
        handle = _native.open_by_name(name)
    except (SageQueueError, OSError) as error:
        return {**row, "error": type(error).__name__}
    try:
        info, stats = _native.Info(handle), _native.stats(handle)
    except SageQueueError as error:
        return {**row, "error": type(error).__name__}
    finally:
        _native.close(handle)
    return {
        **row,
        "items": stats["items"],
        "maxsize": info.maxsize,
        "used_bytes": stats["used_bytes"],
        "capacity": info.capacity,
        "arena": info.arena,
        "arena_used_bytes": stats["arena_used_bytes"],
        "held": stats["held"],
        "leased": stats["leased"],
        "processes": stats["participants"] - 1,  # not this one
        "serializer": info.tag or "raw",
        "auto_cleanup": info.auto_cleanup,
        "persistent": info.persistent,
        "creator_pid": info.creator_pid,
    }
