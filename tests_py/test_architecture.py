"""The house: what may include or import what.  A floor knows the floors below it, and its own where the table says so."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
C_SOURCES = ROOT / "c" / "src"
PACKAGE = ROOT / "python" / "sage_queue"

C_FLOORS = {
    "atomics.h": 0,
    "copy.h": 0,
    "copy.c": 0,
    "layout.h": 0,
    "platform.h": 0,
    "platform/linux.c": 0,
    "points.h": 0,
    "points.c": 0,
    "status.c": 0,
    "files.h": 1,
    "files.c": 1,
    "ring.h": 1,
    "ring.c": 1,
    "arena.h": 2,
    "arena.c": 2,
    "wait.h": 2,
    "wait.c": 2,
    "guard.h": 2,
    "guard.c": 2,
    "pins.h": 2,
    "pins.c": 2,
    "registry.h": 2,
    "registry.c": 2,
    "segment.h": 3,
    "segment.c": 3,
    "ready.h": 3,
    "ready.c": 3,
    "calls.h": 4,
    "waiting.c": 4,
    "turn.c": 4,
    "put.c": 4,
    "batch.c": 4,
    "take.c": 4,
    "bury.c": 4,
    "queue.c": 4,
    "observe.c": 4,
}
#: Includes within a floor; everything else goes down.
C_SAME_FLOOR = {("registry.c", "wait.h"), ("registry.h", "arena.h"), ("segment.c", "ready.h"), ("ready.h", "segment.h")} | {
    (file, "calls.h") for file in ("waiting.c", "turn.c", "put.c", "batch.c", "take.c", "bury.c", "queue.c", "observe.c")
}

PYTHON_FLOORS = {
    "_errors": 0,
    "_address": 0,
    "_codec": 0,
    "_surroundings": 0,
    "_torch": 0,
    "_native": 1,
    "_held": 2,
    "_batches": 2,
    "_ready": 2,
    "aio": 2,
    "_retries": 2,
    "_queue": 2,
    "_by_name": 2,
    "_manager": 2,
    "__init__": 3,
    "__main__": 3,
    "ray": 3,
    "compat": 3,
    "cli": 3,
}
PYTHON_SAME_FLOOR = {
    ("__main__", "cli"),
    ("_codec", "_errors"),
    ("_address", "_errors"),
    ("_codec", "_address"),
    ("_surroundings", "_address"),
    ("_codec", "_torch"),
    ("_torch", "_codec"),
    ("_batches", "_held"),
    ("_ready", "_held"),
    ("_queue", "_batches"),
    ("_queue", "_ready"),
    ("_queue", "aio"),
    ("aio", "_held"),
    ("aio", "_ready"),
    ("_queue", "_held"),
    ("_queue", "_retries"),
    ("_by_name", "_queue"),
    ("_manager", "_queue"),
}


def c_files() -> list[str]:
    return sorted(str(path.relative_to(C_SOURCES)) for path in C_SOURCES.rglob("*.[ch]"))


def includes(file: str) -> list[str]:
    """The quoted includes of one of our C files, relative to c/src; but for that of the explorer, which lies with the tests."""
    here = (C_SOURCES / file).parent
    found = re.findall(r'^#include "([^"]+)"', (C_SOURCES / file).read_text(), re.MULTILINE)
    return [str((here / name).resolve().relative_to(C_SOURCES.resolve())) for name in found if name != "model_atomics.h"]


def modules() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    """The modules of our package that a module imports, wherever in it."""
    text = path.read_text()
    dots = "." * len(path.relative_to(PACKAGE).parts)
    names = set(re.findall(rf"^\s*from {re.escape(dots)}(\w+)[\w.]* import", text, re.MULTILINE))
    for line in re.findall(rf"^\s*from {re.escape(dots)} import (.+)$", text, re.MULTILINE):
        names |= {name.split(" as ")[0].strip() for name in line.strip("()").split(",")}
    return names & set(PYTHON_FLOORS)


def test_every_c_file_has_a_floor() -> None:
    assert set(c_files()) == set(C_FLOORS)


@pytest.mark.parametrize("file", sorted(C_FLOORS))
def test_c_files_include_nothing_from_above(file: str) -> None:
    own = file.removesuffix(".c") + ".h"
    for included in includes(file):
        allowed = C_FLOORS[included] < C_FLOORS[file] or included == own or (file, included) in C_SAME_FLOOR
        assert allowed or C_FLOORS[file] == C_FLOORS[included] == 0, f"{file} includes {included}"


def test_the_ring_knows_no_operating_system() -> None:
    text = (C_SOURCES / "ring.c").read_text() + (C_SOURCES / "ring.h").read_text() + (C_SOURCES / "layout.h").read_text()
    system = set(re.findall(r"^#include <([^>]+)>", text, re.MULTILINE))
    assert system <= {"stddef.h"}
    assert not re.search(r"\b(malloc|calloc|free|pthread_\w+|open|mmap)\s*\(", text)


def test_only_the_platform_knows_the_operating_system() -> None:
    for file in c_files():
        if not file.startswith("platform/"):
            text = (C_SOURCES / file).read_text()
            assert not re.search(r"#include <(sys/mman|sys/stat|fcntl|linux/\w+|sys/syscall|errno)\.h>", text), file


def test_descriptors_are_opened_and_closed_through_one_door() -> None:
    """Else a child that is forked meanwhile keeps them (c/src/files.c)."""
    system = r"\b(open|openat|open64|creat|dup|dup2|dup3|fopen|fdopen|opendir|memfd_create|pipe2?|socket|mkstemp|tmpfile|close|fclose)\s*\("
    platform = r"\brbi_(open_\w+|close)\s*\("
    opened = set(re.findall(platform, (C_SOURCES / "platform.h").read_text()))
    assert len(opened) >= 10  # the question below is about something
    for file in c_files():
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (C_SOURCES / file).read_text(), flags=re.DOTALL)
        if not file.startswith("platform/"):
            assert not re.search(system, text), f"{file} opens or closes a descriptor by itself"
            assert not re.search(r"\bF_DUPFD", text), file
        if not file.startswith("platform") and file != "files.c":
            assert not re.search(platform, text), f"{file} does not go through files.c"


def test_the_platform_returns_no_standard_descriptor() -> None:
    text = (C_SOURCES / "platform/linux.c").read_text()
    calls = [line.strip() for line in text.splitlines() if re.search(r"(?<![\w\"(/])(open|openat|dup2?)\(", line) and "*" not in line[:3]]
    assert calls == ['while (lows < STANDARD && (fd = open("/", O_PATH | O_CLOEXEC)) >= 0) {', "fd = open(path, flags | O_CLOEXEC, mode);"]


def test_every_python_module_has_a_floor() -> None:
    assert {module_name(path) for path in modules()} <= set(PYTHON_FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_modules_import_nothing_from_above(path: pathlib.Path) -> None:
    name = module_name(path)
    for imported in imports(path) - {name}:
        down = PYTHON_FLOORS[imported] < PYTHON_FLOORS[name]
        assert down or (name, imported) in PYTHON_SAME_FLOOR, f"{path.name} imports {imported}"


def test_only_the_native_floor_touches_the_c_library() -> None:
    for path in modules():
        if module_name(path) != "_native":
            assert "_ringbuf" not in path.read_text(), path.name


def test_multiprocessing_shared_memory_is_never_used() -> None:
    for path in modules():
        assert "shared_memory import" not in path.read_text(), path.name
        assert "resource_tracker" not in path.read_text(), path.name


def test_every_function_of_the_header_is_in_the_module_and_no_other() -> None:
    from sage_queue import _ringbuf

    header = (ROOT / "c/include/ringbuf/ringbuf.h").read_text()
    region = header[header.index("[cdef begin]") : header.index("[cdef end]")]
    declared = set(re.findall(r"^RINGBUF_API .*?\b(ringbuf_\w+)\(", region, re.MULTILINE))
    assert declared
    assert {name for name in dir(_ringbuf.lib) if name.startswith("ringbuf_")} == declared


def test_the_alias_package_shadows_no_other_sage() -> None:
    assert not (ROOT / "python/sage/__init__.py").exists()
    assert not (ROOT / "python/sage/utils/__init__.py").exists()
    assert not (ROOT / "python/sage/extensions/__init__.py").exists()
    assert not (ROOT / "python/sage_ext/__init__.py").exists()
