"""The seed's own snippets, letter by letter.  (The one with Ray actors is in test_ray.py.)"""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue

BASIC_USE = """\
from sage.utils.mmap_queue import SageQueue

# 创建高性能队列
queue = SageQueue("my_queue")

# 标准Queue接口
queue.put({"data": [1, 2, 3], "meta": "SAGE"})
item = queue.get()

# 跨进程引用传递
ref = queue.get_reference()
# ref可以通过pickle传递到其他进程...
"""

INTERFACE = """\
- `put()`, `get()`, `put_nowait()`, `get_nowait()`
- `qsize()`, `empty()`, `full()`
"""


@pytest.fixture
def after_basic_use() -> Iterator[dict[str, Any]]:
    names: dict[str, Any] = {}
    exec(BASIC_USE, names)
    yield names
    names["queue"].close()


def test_basic_use_runs_as_it_stands(after_basic_use: dict[str, Any]) -> None:
    assert after_basic_use["item"] == {"data": [1, 2, 3], "meta": "SAGE"}
    assert after_basic_use["queue"].empty()


def test_basic_use_runs_as_a_program_silently(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python(BASIC_USE)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_reference_can_go_to_another_process_through_pickle(
    after_basic_use: dict[str, Any], run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ref = after_basic_use["ref"]
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1])).get_queue().put('from there')"
    run_python(code, pickle.dumps(ref).hex())
    assert after_basic_use["queue"].get(timeout=10) == "from there"


def test_the_alias_is_the_package() -> None:
    import sage.utils.mmap_queue as alias
    from sage.utils.mmap_queue import SageQueue, SageQueueRef, destroy_queue

    assert (SageQueue, SageQueueRef, destroy_queue) == (
        sage_queue.SageQueue,
        sage_queue.SageQueueRef,
        sage_queue.destroy_queue,
    )
    assert alias.__all__ == sage_queue.__all__
    assert all(getattr(alias, name) is getattr(sage_queue, name) for name in alias.__all__)


def test_the_alias_hides_no_other_package_named_sage(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Any
) -> None:
    neighbour = tmp_path / "sage" / "utils" / "neighbour"
    neighbour.mkdir(parents=True)
    (neighbour / "__init__.py").write_text("here = True\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import sage, sage.utils, sage.utils.neighbour, sage.utils.mmap_queue
assert sage.__file__ is None and sage.utils.__file__ is None and sage.utils.neighbour.here
"""
    run_python(code)


def test_every_method_that_the_seed_lists_is_there() -> None:
    for method in INTERFACE.replace("`", "").replace("- ", "").replace("\n", ", ").split(", "):
        if method:
            assert callable(getattr(sage_queue.SageQueue, method.removesuffix("()")))
