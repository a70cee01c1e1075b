"""The import paths of SAGE's first queue: all are `sage_queue`, or an error says why not; never half of each."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

from sage_queue.compat import OLD_PATHS

ROOT = pathlib.Path(__file__).parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
OLD_QUEUE = "class SageQueue:\n    old = True\n"
ALL_ARE_OURS = f"""
import importlib, sage_queue
for path in {OLD_PATHS!r}:
    module = importlib.import_module(path)
    assert module.SageQueue is sage_queue.SageQueue, path
    assert all(getattr(module, name) is getattr(sage_queue, name) for name in sage_queue.__all__), path
"""


def write(root: pathlib.Path, files: dict[str, str]) -> str:
    """The files below `root`, and the line of Python that puts `root` before everything installed."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return f"import sys; sys.path.insert(0, {str(root)!r})\n"


@pytest.mark.parametrize("path", OLD_PATHS)
def test_each_old_path_alone_is_the_package(run_python: Run, path: str) -> None:
    run_python(f"import sage_queue\nfrom {path} import SageQueue, SageQueueRef, destroy_queue\nassert SageQueue is sage_queue.SageQueue")


REGULAR = {"sage/__init__.py": "regular = True\n", "sage/utils/__init__.py": "", "sage/utils/mine.py": "here = True\n"}
OTHERS = {
    "regular": REGULAR,
    "regular without utils": {"sage/__init__.py": "regular = True\n"},
    "regular with an old queue": REGULAR | {f"sage/utils/mmap_queue/{f}.py": OLD_QUEUE for f in ("__init__", "sage_queue")},
    "namespace with an old queue": {"sage/utils/mmap_queue/__init__.py": "", "sage/utils/mmap_queue/sage_queue.py": OLD_QUEUE},
    "an old sage_ext": {"sage_ext/__init__.py": "", "sage_ext/sage_queue/__init__.py": OLD_QUEUE},
}


@pytest.mark.parametrize("files", OTHERS.values(), ids=OTHERS)
def test_use_old_paths_makes_all_of_them_ours_beside_another_distribution(
    run_python: Run, tmp_path: pathlib.Path, files: dict[str, str]
) -> None:
    rest = "import sage\nassert sage.regular\n" if "sage/__init__.py" in files else ""
    rest += "import sage.utils.mine\nassert sage.utils.mine.here\n" if "sage/utils/mine.py" in files else ""
    run_python(write(tmp_path, files) + "import sage_queue.compat\nsage_queue.compat.use_old_paths()" + ALL_ARE_OURS + rest)


def test_use_old_paths_refuses_where_an_old_queue_was_imported(run_python: Run, tmp_path: pathlib.Path) -> None:
    code = """
import sage.utils.mmap_queue.sage_queue as old, sage_queue.compat
assert old.SageQueue.old
try:
    sage_queue.compat.use_old_paths()
except ImportError as error:
    assert "before anything imports it" in str(error) and "sage.utils.mmap_queue" in str(error), error
else:
    raise AssertionError("half ours, half theirs")
assert sys.modules["sage.utils.mmap_queue.sage_queue"] is old and "sage.extensions.sage_queue" not in sys.modules
"""
    run_python(write(tmp_path, OTHERS["namespace with an old queue"]) + code)


@pytest.mark.parametrize(
    ("package", "leftover"),
    [("sage/utils/mmap_queue", "sage_queue.py"), ("sage_ext/sage_queue", "python/sage_queue.py")],
)
def test_a_package_of_which_another_distribution_overwrote_a_part_is_an_error(
    run_python: Run, tmp_path: pathlib.Path, package: str, leftover: str
) -> None:
    shutil.copytree(ROOT / "python" / package, tmp_path / package)
    code = f"""
try:
    import {package.replace("/", ".")}
except ImportError as error:
    assert "belongs to another queue" in str(error), error
else:
    raise AssertionError("half ours, half theirs")
"""
    run_python(write(tmp_path, {f"{package}/{leftover}": OLD_QUEUE}) + code)
