"""Floor 0: what the memory around a queue allows: the file system that it lies in, and the cgroup that its pages are counted in.

A queue's memory is used only as messages reach it, so a queue may be made larger than either; that it cannot be filled shows much later, in
some put.  Here it is said when the queue is made, and only if its sizes were chosen: the default suits the file system.

Owns: how /proc/self/cgroup, /proc/self/mountinfo and the limits of cgroups (version 2 and 1) are read.  Nothing here fails: where the system
does not say what the limit is, there is none.
"""

from __future__ import annotations

import os

from ._address import human_bytes

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterator

#: What makes the memory file system of a container larger, for the texts of warnings and errors.
LARGER = "docker run --shm-size=1g; in Kubernetes a volume emptyDir: {medium: Memory} mounted on it"

_known: tuple[int, int | None, str] | None = None  # for which process, and what memory_limit() says


def warn_of_sizes(directory: str, capacity: int, arena: int, *, stacklevel: int = 3) -> None:
    """Warn of a queue that cannot be filled.  `capacity` and `arena` are bytes as they were chosen; 0: not chosen."""
    wanted = capacity + arena
    chosen = " and ".join(f"{what}={human_bytes(size)}" for what, size in (("capacity", capacity), ("arena", arena)) if size)
    total = file_system_bytes(directory)
    texts = []
    if total is not None and wanted > total:
        texts.append(
            f"a queue with {chosen} cannot be filled: {directory} can hold {human_bytes(total)}, for all queues together.  A put that finds "
            f"no room there waits, or raises QueueNoSpace; make it larger ({LARGER}), choose smaller sizes, or name a larger directory in "
            "SAGE_QUEUE_DIR"
        )
    limit, where = _limit_of_this_process()
    if limit is not None and wanted > limit:
        texts.append(
            f"a queue with {chosen} can take more memory than this process's cgroup may use, which is {human_bytes(limit)} ({where}).  "
            "Memory of queues counts there, and a put beyond the limit raises nothing: the kernel's OOM killer ends a process.  Raise the "
            "limit (docker run --memory=2g; in Kubernetes resources.limits.memory), or choose smaller sizes"
        )
    if texts:
        import warnings  # here: few need it

        for text in texts:
            warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)


def file_system_bytes(directory: str) -> int | None:
    """What the file system can hold in all; None if it has no bound of its own, or none is known."""
    try:
        facts = os.statvfs(directory)
    except OSError:
        return None
    return facts.f_blocks * facts.f_frsize or None  # 0: a tmpfs mounted with size=0


def _limit_of_this_process() -> tuple[int | None, str]:
    """memory_limit(), looked up once for each process: a limit that is changed later is noticed by processes that start later."""
    global _known
    if _known is None or _known[0] != os.getpid():
        _known = (os.getpid(), *memory_limit())
    return _known[1:]


def memory_limit(root: str = "/") -> tuple[int | None, str]:
    """The least of the memory limits of this process's cgroup and of those above it, in bytes, and the file that says so; (None, "") if there
    is none.  `root`: where /proc and /sys are looked for."""
    least: int | None = None
    where = ""
    for file in _limit_files(root):
        try:
            with open(os.path.join(root, file.lstrip("/")), encoding="ascii") as limit_file:
                limit = int(limit_file.read())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if least is None or limit < least:
            least, where = limit, file
    return least, where


def _limit_files(root: str) -> Iterator[str]:
    """Where the limits of our cgroup, and of each one above it, are, as far as they can be seen here."""
    try:
        ours = _read(root, "proc/self/cgroup")
        mounts = _read(root, "proc/self/mountinfo")
    except OSError:
        return
    groups = {}  # the path of our cgroup in each hierarchy that can have a limit: "cgroup2", or "cgroup" where the controller is memory
    for line in ours:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            groups["cgroup2"] = path
        elif "memory" in controllers.split(","):
            groups["cgroup"] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, about = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(about) < 3 or about[0] not in groups:
            continue
        kind = about[0]
        if kind == "cgroup" and "memory" not in about[2].split(","):
            continue
        top, at = _unescaped(fields[3]), _unescaped(fields[4])
        parts = _below(groups[kind], top)
        name = "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"
        for count in range(len(parts), -1, -1):
            yield os.path.join(at, *parts[:count], name)


def _below(path: str, top: str) -> list[str]:
    """The way from the mounted cgroup down to ours.  In a container it can be that what is mounted is our cgroup itself, and that its path
    means something outside only."""
    parts, above = [each for each in path.split("/") if each], [each for each in top.split("/") if each]
    if ".." in parts or parts[: len(above)] != above:
        return []
    return parts[len(above) :]


def _read(root: str, file: str) -> list[str]:
    with open(os.path.join(root, file), encoding="utf-8", errors="surrogateescape") as opened:
        return opened.read().splitlines()


def _unescaped(field: str) -> str:
    """mountinfo writes a space as \\040, and so on."""
    parts = field.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] if part[:3].isdigit() else "\\" + part for part in parts[1:])
