"""What the documents say that a program can check: labels, names of tests and files, offsets, links, and the README's example."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
C_SOURCES = ROOT / "c" / "src"
DOCUMENTS = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
TEXTS = {document: document.read_text(encoding="utf-8") for document in DOCUMENTS}
MODEL = ROOT / "docs" / "memory-model.md"
LAYOUT = ROOT / "docs" / "layout.md"

LABEL = re.compile(r"\[([ET]\d+)(?: [a-z]+)?\]")


def in_backticks(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


# ---- labels of the memory model ----


def defined_labels() -> dict[str, str]:
    """The labels that have a row in one of the two tables, with their names."""
    return dict(re.findall(r"^\| \[([ET]\d+) ([a-z]+)\] \|", TEXTS[MODEL], re.MULTILINE))


def labels_in_code() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(C_SOURCES.rglob("*.[ch]")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for label in LABEL.findall(line):
                found.setdefault(label, []).append(f"{path.name}:{number}")
    return found


def test_the_labels_of_the_memory_model_count_from_one_on() -> None:
    numbers = {kind: sorted(int(label[1:]) for label in defined_labels() if label[0] == kind) for kind in "ET"}
    assert all(found == list(range(1, len(found) + 1)) and found for found in numbers.values()), numbers


@pytest.mark.parametrize("label", sorted(defined_labels()))
def test_every_label_of_the_memory_model_stands_at_both_ends_in_the_code(label: str) -> None:
    assert len(labels_in_code().get(label, [])) >= 2


def test_every_label_in_the_code_and_in_the_documents_is_defined() -> None:
    used = {label: places for label, places in labels_in_code().items() if label not in defined_labels()}
    for document, text in TEXTS.items():
        used.update({label: [document.name] for label in LABEL.findall(text) if label not in defined_labels()})
    assert not used


def test_a_label_with_a_name_has_the_same_name_everywhere() -> None:
    wrong = []
    for path in [*C_SOURCES.rglob("*.[ch]"), *DOCUMENTS]:
        for label, name in re.findall(r"\[([ET]\d+) ([a-z]+)\]", path.read_text(encoding="utf-8")):
            if defined_labels().get(label) != name:
                wrong.append(f"{path.name}: [{label} {name}]")
    assert not wrong


def test_every_point_that_the_memory_model_names_is_a_test_point() -> None:
    listed = re.search(r"#define RBI_POINTS\(X\)(.*?)\n\nenum", (C_SOURCES / "atomics.h").read_text(encoding="utf-8"), re.DOTALL)
    assert listed
    points = set(re.findall(r"X\((\w+)\)", listed[1]))
    steps = TEXTS[MODEL].split("## Step by step", 1)[1]
    named = {word for row in steps.splitlines() if row.startswith("|") for word in re.findall(r"\(`([a-z_]+)`\)", row.split("|")[1])}
    assert named and named <= points, named - points


# ---- names ----

TESTS = {
    name
    for path in [*(ROOT / "tests_c").rglob("*.c"), *(ROOT / "tests_py").glob("*.py")]
    for name in re.findall(r"^(?:static void|def|async def) (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
}
PROGRAMS = {path.stem for path in (ROOT / "tests_c").rglob("test_*.c")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_test_that_a_document_names_exists(document: pathlib.Path) -> None:
    named = {word for word in in_backticks(TEXTS[document]) if re.fullmatch(r"test_\w+", word)}
    assert named <= TESTS | PROGRAMS, named - TESTS - PROGRAMS


def test_every_promise_names_a_test() -> None:
    promised = TEXTS[ROOT / "docs" / "guarantees.md"].split("## Promised")[1].split("## Not promised")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ") and not row.startswith("| Promise")]
    assert rows
    assert [row for row in rows if not set(in_backticks(row.rsplit("|", 2)[1])) & TESTS] == []


def test_every_scenario_of_the_crash_suite_that_a_document_names_exists() -> None:
    suite = (ROOT / "tests_c" / "test_crash.c").read_text(encoding="utf-8")
    missing = []
    for text in TEXTS.values():
        for line in text.splitlines():
            if "scenarios " in line and "test_crash.c" in line:
                missing += [name for name in re.findall(r'"([^"]+)"', line) if f'"{name}"' not in suite]
    assert not missing


MADE_LATER = {".venv", "build/", "tests_c/vendor/unity/"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_file_that_a_document_names_exists(document: pathlib.Path) -> None:
    missing = []
    for word in in_backticks(TEXTS[document]):
        looks_like_one = re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(py|c|h|md|txt|lock)", word)
        if not looks_like_one or word in MADE_LATER:
            continue
        places = [ROOT, C_SOURCES, ROOT / "python" / "sage_queue", ROOT / "c" / "include"]
        if not any((place / word).exists() for place in places):
            missing.append(word)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[document]):
        if not (document.parent / link).exists():
            missing.append(link)
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_function_of_the_library_that_a_document_names_exists(document: pathlib.Path) -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in [*(ROOT / "c").rglob("*.[ch]"), ROOT / "cbuild.py"])
    named = {match for word in in_backticks(TEXTS[document]) for match in re.findall(r"\b(?:ringbuf|rbi|RINGBUF|RBI)_\w+", word)}
    missing = {name for name in named if not re.search(rf"\b{re.sub(r'(32|64)$', '', name)}", source)}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_command_that_a_document_names_exists(document: pathlib.Path) -> None:
    presets = (ROOT / "CMakePresets.json").read_text(encoding="utf-8")
    missing = []
    for word in [*in_backticks(TEXTS[document]), *TEXTS[document].splitlines()]:
        for script in re.findall(r"(?:^|\s)(?:bash |\./)(\.ci/\w+)", word):
            if not (ROOT / script).exists():
                missing.append(script)
        for preset in re.findall(r"cmake --workflow --preset (\w+)", word):
            if f'"name": "{preset}"' not in presets:
                missing.append(preset)
        for module in re.findall(r"python3? -m (benchmarks|sage_queue)\b", word):
            if not any((place / module / "__main__.py").exists() for place in (ROOT, ROOT / "python")):
                missing.append(module)
    assert not missing


# ---- numbers ----


def rows_under(heading: str) -> list[tuple[int, str]]:
    """(offset, field) of the table below a heading of layout.md."""
    section = re.split(rf"^##+ {heading}\n", TEXTS[LAYOUT], maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^##", section, maxsplit=1, flags=re.MULTILINE)[0]
    return [(int(offset), field) for offset, field in re.findall(r"^\| (\d+) \|(?: \d+ \|)? `([\w.\[\]]+)`", section, re.MULTILINE)]


TABLES = {
    "Header": "rbi_header",
    "Stamp": "rbi_stamp",
    "Cursors of a lane": "rbi_cursors",
    "Participants": "rbi_participant",
    "Slots": "rbi_slot",
    "Runs": "rbi_run_entry",
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_offsets_in_the_layout_are_those_of_the_header(tmp_path: pathlib.Path) -> None:
    claims = [(struct, field, offset) for heading, struct in TABLES.items() for offset, field in rows_under(heading)]
    assert len(claims) >= 50
    asserts = "".join(
        f'_Static_assert(offsetof(struct {struct}, {field}) == {offset}, "{struct}.{field}");\n' for struct, field, offset in claims
    )
    (tmp_path / "offsets.c").write_text(f'#include "layout.h"\n{asserts}')
    done = subprocess.run(
        ["cc", "-std=gnu11", "-fsyntax-only", "-I", str(C_SOURCES), "-I", str(ROOT / "c" / "include"), str(tmp_path / "offsets.c")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# ---- the README's example ----


def first_program() -> str:
    block = re.search(r"^```python\n(.*?)^```", TEXTS[ROOT / "README.md"], re.MULTILINE | re.DOTALL)
    assert block
    return block[1]


def run_first_program(text: str, directory: pathlib.Path) -> None:
    program = directory / "readme.py"  # a file: children of spawn and forkserver import it
    program.write_text(text, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"print\(.*\)\s+# (\S+)$", text, re.MULTILINE)
    assert expected and done.stdout.split() == expected, done.stdout


def test_the_first_python_program_of_the_readme_runs(tmp_path: pathlib.Path) -> None:
    run_first_program(first_program(), tmp_path)


@pytest.mark.parametrize("where", ["before its result is put", "after its result is put"])
def test_the_first_python_program_of_the_readme_ends_also_if_a_worker_is_killed(tmp_path: pathlib.Path, where: str) -> None:
    work = re.search(r"^( +)results\.put\(.*\n", first_program(), re.MULTILINE)
    assert work
    flag = tmp_path / "killed"
    kill = f"{work[1]}if job.value['number'] == 50 and job.attempts == 1: import os; open({str(flag)!r}, 'w').close(); os.kill(os.getpid(), 9)\n"
    with_kill = kill + work[0] if where.startswith("before") else work[0] + kill
    run_first_program(first_program().replace(work[0], with_kill), tmp_path)
    assert flag.exists()


# ---- the programs of the pages ----

PAGES = ["zero-copy.md", "waiting.md", "memory.md"]


def blocks_of(document: pathlib.Path, language: str) -> str:
    """All blocks in that language, one after the other: they are one program.  Without those that import what is not here."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", TEXTS[document], re.MULTILINE | re.DOTALL)
    assert blocks
    return "\n".join(block for block in blocks if all(map(importlib.util.find_spec, re.findall(r"^import (\w+)$", block, re.MULTILINE))))


@pytest.mark.parametrize("page", [*PAGES, "containers.md"])
def test_the_python_programs_of_a_page_run(tmp_path: pathlib.Path, page: str) -> None:
    pytest.importorskip("numpy")
    program = tmp_path / "page.py"
    program.write_text(blocks_of(ROOT / "docs" / page, "python"), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("page", PAGES)
def test_the_c_functions_of_a_page_compile(tmp_path: pathlib.Path, page: str) -> None:
    (tmp_path / "page.c").write_text(blocks_of(ROOT / "docs" / page, "c"), encoding="utf-8")
    done = subprocess.run(
        ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(ROOT / "c" / "include"), str(tmp_path / "page.c")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# ---- style ----


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")], ids=lambda path: path.name)
def test_a_line_holds_one_sentence(document: pathlib.Path) -> None:
    prose = re.sub(r"^```.*?^```", "", TEXTS[document], flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if line and line[0] not in "|#-0123456789"]
    assert [line for line in lines if re.search(r"[a-z0-9`)]\. [A-Z]", line)] == []
