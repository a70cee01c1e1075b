"""A C program outside this tree, built against the installed library in each of the ways we offer, talks to Python."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

from sage_queue import SageQueue, ShutDown

ROOT = pathlib.Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("cc") and shutil.which("pkg-config")), reason="needs cmake, cc and pkg-config"
)


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The library, installed somewhere."""
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("prefix")
    run("cmake", "-S", ROOT, "-B", build, "-DRINGBUF_BUILD_TESTS=OFF", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_INSTALL_PREFIX={prefix}")
    run("cmake", "--build", build)
    run("cmake", "--install", build)
    return prefix


def build_with_cmake(prefix: pathlib.Path, where: pathlib.Path) -> pathlib.Path:
    shutil.copytree(ROOT / "examples/c", where / "source")
    run("cmake", "-S", where / "source", "-B", where / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", where / "build")
    return where / "build" / "shout"


def build_with_pkg_config(prefix: pathlib.Path, where: pathlib.Path) -> pathlib.Path:
    (pc_file,) = prefix.rglob("ringbuf.pc")
    flags = run("pkg-config", "--cflags", "--libs", "ringbuf", PKG_CONFIG_PATH=str(pc_file.parent)).split()
    shutil.copy(ROOT / "examples/c/shout.c", where)
    run("cc", where / "shout.c", "-o", where / "shout", *flags, f"-Wl,-rpath,{pc_file.parent.parent}")
    return where / "shout"


@pytest.mark.parametrize("build", [build_with_cmake, build_with_pkg_config], ids=["find_package", "pkg-config"])
def test_a_c_program_outside_the_tree_exchanges_messages_with_python(build, prefix, tmp_path, name) -> None:
    program = build(prefix, tmp_path)
    with SageQueue(f"{name}-quiet", serializer="raw") as quiet, SageQueue(f"{name}-loud", serializer="raw") as loud:
        child = subprocess.Popen([str(program), quiet.name, loud.name])
        words = [f"message {i}".encode() for i in range(2000)] + [b"", b"x" * 4096]
        for word in words:
            quiet.put(word)
        quiet.shutdown()
        heard = []
        with pytest.raises(ShutDown):
            while True:
                heard.append(loud.get(timeout=30))
        assert heard == [word.upper() for word in words]
        assert child.wait(30) == 0
