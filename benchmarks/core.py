"""The C core alone, and what the kernel's futex costs: the program core.c, compiled from this checkout into a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_LIBRARY = _HERE.parent / "c"


class Program:
    """core.c, compiled when first needed and removed by close()."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def missing() -> str | None:
        return None if _compiler() else "no C compiler"

    def build(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sage-queue-benchmarks-")
        compiler = _compiler()
        assert compiler is not None
        library = sorted(path for path in (_LIBRARY / "src").rglob("*.c") if path.name != "points.c")  # that one is for tests
        flags = ["-O2", "-DNDEBUG", "-std=c11", "-pthread", "-D_GNU_SOURCE=", '-DRINGBUF_VERSION_STRING="benchmark"']
        folders = [f"-I{_LIBRARY / 'include'}", f"-I{_LIBRARY / 'src'}"]
        subprocess.run([compiler, *flags, *folders, _HERE / "core.c", *library, "-o", self._path], check=True)

    def close(self) -> None:
        if self._folder:
            self._folder.cleanup()

    def throughput(self, producers: int, consumers: int, size_bytes: int, seconds: float) -> dict[str, float]:
        answer = self._run("throughput", producers, consumers, size_bytes, seconds)
        return {"messages_per_s": answer["messages_per_s"]}

    def pingpong(self, rounds: int) -> dict[str, float]:
        return _percentiles(self._run("pingpong", rounds))

    def futex(self, rounds: int) -> dict[str, float]:
        return _percentiles(self._run("futex", rounds))

    @property
    def _path(self) -> str:
        assert self._folder is not None
        return os.path.join(self._folder.name, "core")

    def _run(self, *words: object) -> dict[str, float]:
        """The program's one line of JSON.  It ends with an error if anything was lost or out of order."""
        command = [self._path, *map(str, words)]
        answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return answer


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def _percentiles(answer: dict[str, float]) -> dict[str, float]:
    return {f"{percentile}_us": answer[f"{percentile}_ns"] / 1e3 for percentile in ("p50", "p99", "p999")}
