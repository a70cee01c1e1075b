"""The package is typed: it checks under mypy --strict and pyright, its stub says what the module has, and a program that uses it can be
checked."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

import sage_queue

PACKAGE = pathlib.Path(sage_queue.__file__).parent
HERE = pathlib.Path(__file__).parent
TYPED_USE = HERE / "typed_use.py"

needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
needs_pyright = pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")


def run(*arguments: str | os.PathLike[str], cwd: pathlib.Path) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def mypy(*arguments: str | os.PathLike[str], cwd: pathlib.Path) -> None:
    # What a Python or an extra that is not here would need is not ours to say.
    run("mypy", "--strict", "--no-error-summary", "--cache-dir", cwd / "cache", *arguments, cwd=cwd)


@needs_mypy
def test_the_package_is_clean_under_strict_mypy(tmp_path: pathlib.Path) -> None:
    mypy("-p", "sage_queue", cwd=tmp_path)


@needs_mypy
def test_a_typed_program_is_checked_against_the_types_of_its_items(tmp_path: pathlib.Path) -> None:
    mypy(TYPED_USE, cwd=tmp_path)  # an ignored error that is none is an error itself


@needs_mypy
def test_the_stub_of_the_c_module_says_what_the_module_has(tmp_path: pathlib.Path) -> None:
    run("mypy.stubtest", "sage_queue._ringbuf", cwd=tmp_path)


@needs_pyright
@pytest.mark.parametrize("what", [PACKAGE, TYPED_USE], ids=["package", "typed_use"])
def test_pyright_has_nothing_to_say(what: pathlib.Path) -> None:
    run("pyright", "--pythonpath", sys.executable, what, cwd=HERE)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
