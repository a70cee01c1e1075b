"""What .ci/coverage has measured, as a table; and what is not covered, as a list.

    coverage_report.py PROFDATA PYTHON.json UNCOVERED.txt OBJECT...

Every object holds a build of the C sources: the library as it is, with test points, in the module.  They are merged: a line or a branch
counts as covered if it was in any of them.  Asked for is only what is in the first object, the library as it is, and the module's own
files.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


class File:
    """What is known of one source file."""

    def __init__(self) -> None:
        self.lines: dict[int, int] = {}  # times
        self.branches: dict[tuple[int, int, int, int, bool], int] = {}  # where, and which way: times
        self.functions: dict[str, tuple[int, int]] = {}  # first and last line

    def add(self, other: File, only_known: bool) -> None:
        for line, times in other.lines.items():
            if line in self.lines or not only_known:
                self.lines[line] = max(times, self.lines.get(line, 0))
        for branch, count in other.branches.items():
            if branch in self.branches or not only_known:
                self.branches[branch] = max(count, self.branches.get(branch, 0))
        self.functions.update(other.functions)

    def function_at(self, line: int) -> str:
        inside = [(last - first, name) for name, (first, last) in self.functions.items() if first <= line <= last]
        return min(inside)[1] if inside else "-"


def of_object(profile: str, path: str) -> dict[str, File]:
    """By the file's name, from the root on.  An object that is none of ours has nothing to say."""
    files: dict[str, File] = {}

    def file(name: str) -> File | None:
        place = pathlib.Path(name).resolve()
        if not place.is_relative_to(ROOT) or place.parts[len(ROOT.parts)] not in ("c", "python"):
            return None
        return files.setdefault(str(place.relative_to(ROOT)), File())

    def export(kind: str) -> str:
        command = ["llvm-cov", "export", f"-format={kind}", f"-instr-profile={profile}", path]
        return subprocess.run(command, capture_output=True, text=True).stdout

    here: File | None = None
    for line in export("lcov").splitlines():
        if line.startswith("SF:"):
            here = file(line[3:])
        elif line.startswith("DA:") and here:
            number, times = line[3:].split(",")[:2]
            here.lines[int(number)] = int(times)
    text = export("text")
    if not text:
        return files
    data = json.loads(text)["data"][0]
    for entry in data["files"]:
        if (here := file(entry["filename"])) is not None:
            for first, column, last, end, taken, not_taken, *_ in entry["branches"]:
                for way, times in ((True, taken), (False, not_taken)):
                    where = (first, column, last, end, way)
                    here.branches[where] = max(times, here.branches.get(where, 0))
    for function in data["functions"]:
        if (here := file(function["filenames"][0])) is not None:
            region = function["regions"][0]
            here.functions[function["name"].split(":")[-1]] = (region[0], region[2])
    return files


def of_c(profile: str, objects: list[str]) -> dict[str, File]:
    found = of_object(profile, objects[0])
    for path in objects[1:]:
        if os.path.isfile(path):
            for name, file in of_object(profile, path).items():
                if name in found:
                    found[name].add(file, only_known=True)
                elif name.startswith("python/"):
                    found[name] = file
    return found


def of_python(path: str) -> dict[str, File]:
    """From coverage.py's JSON.  A branch goes from a line to a line."""
    found: dict[str, File] = {}
    with open(path) as json_file:
        report = json.load(json_file)
    for name, entry in report["files"].items():
        parts = pathlib.Path(name).parts
        file = found["python/" + "/".join(parts[parts.index("sage_queue") :])] = File()
        file.lines = dict.fromkeys(entry["executed_lines"], 1) | dict.fromkeys(entry["missing_lines"], 0)
        for times, key in ((1, "executed_branches"), (0, "missing_branches")):
            for start, to in entry[key]:
                file.branches[(start, to, 0, 0, True)] = times
        for function, facts in entry.get("functions", {}).items():
            lines = facts["executed_lines"] + facts["missing_lines"]
            if function and lines:
                file.functions[function] = (min(lines), max(lines))
    return found


def uncovered(name: str, file: File) -> Iterator[str]:
    """A line for each line, or way of a branch, that nothing went."""
    source = (ROOT / name).read_text().splitlines()
    python = name.endswith(".py")
    missing: dict[int, list[str]] = {}
    for line, times in file.lines.items():
        if not times:
            missing.setdefault(line, []).append("line")
    for (line, column, last, end, way), times in file.branches.items():
        if not times and file.lines.get(line):  # a branch of a line that did not run says nothing new
            if python:
                missing.setdefault(line, []).append(f"never to line {column}" if column > 0 else "never out of here")
            else:
                what = source[line - 1][column - 1 : end - 1] if line == last else source[line - 1][column - 1 :]
                missing.setdefault(line, []).append(f"never {'true' if way else 'false'}: {what}")
    for line in sorted(missing):
        yield f"{name}:{line} {file.function_at(line)}: {'; '.join(missing[line])}\n    {source[line - 1].strip()}"


def share(counts: list[int]) -> str:
    covered = sum(1 for count in counts if count)
    return f"{covered:>6}/{len(counts):<6}{100 * covered / len(counts) if counts else 100:>6.1f} %"


def main(profile: str, python: str, target: str, *objects: str) -> None:
    found: dict[str, Any] = {**of_c(profile, list(objects)), **of_python(python)}
    print(f"\n{'file':<44}{'lines':>20}{'branches':>22}")
    sums: dict[str, tuple[list[int], list[int]]] = {}
    with open(target, "w") as report:
        for name in sorted(found):
            file = found[name]
            lines, branches = list(file.lines.values()), list(file.branches.values())
            print(f"{name:<44}{share(lines)}  {share(branches)}")
            for part in uncovered(name, file):
                report.write(part + "\n")
            kind = "python/*.c" if name.endswith((".c", ".h")) else "python/sage_queue"
            if name.startswith("c/"):
                kind = "c/src and c/include"
            all_lines, all_branches = sums.setdefault(kind, ([], []))
            all_lines += lines
            all_branches += branches
    for kind, (lines, branches) in sums.items():
        print(f"{'all of ' + kind:<44}{share(lines)}  {share(branches)}")
    print(f"what is not covered: {os.path.relpath(target)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
