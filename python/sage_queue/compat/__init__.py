"""What programs written for other queues need to run on this one."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import sage_queue

__all__ = ["OLD_PATHS", "use_old_paths"]

#: The import paths under which SAGE's code knows its queue, each after its parents.
OLD_PATHS = (
    "sage.utils.mmap_queue",
    "sage.utils.mmap_queue.sage_queue",
    "sage.extensions.sage_queue",
    "sage_ext.sage_queue",
    "sage_ext.sage_queue.python",
    "sage_ext.sage_queue.python.sage_queue",
)


def use_old_paths() -> None:
    """Makes every import path of SAGE's first queue mean `sage_queue` in this process, whatever else owns `sage`.

    For programs beside a distribution with a `sage` package of its own, whose modules Python would find instead of ours.  To be
    called once in each process, spawned ones too, before the first of these imports; the rest of that `sage` stays as it is.
    ImportError, and nothing changed, where another queue has been imported under one of the paths already.
    """
    for path in OLD_PATHS:
        _import_parent(path.rpartition(".")[0])
    for path in OLD_PATHS:
        there = sys.modules.get(path)
        if there is not None and getattr(there, "SageQueue", None) is not sage_queue.SageQueue:
            raise ImportError(
                f"{path} was imported already and is another queue ({getattr(there, '__file__', None) or 'no file'}): "
                "call sage_queue.compat.use_old_paths() before anything imports it"
            )
    for path in OLD_PATHS:
        _put(path, {name: getattr(sage_queue, name) for name in sage_queue.__all__} | {"__all__": sage_queue.__all__})


def require_ours(module: ModuleType, beside: str) -> None:
    """ImportError if `module`, which lies beside our file `beside`, was overwritten by another distribution's queue."""
    if getattr(module, "SageQueue", None) is not sage_queue.SageQueue:
        raise ImportError(
            f"{module.__file__} belongs to another queue than {beside}: uninstall one of the two distributions, or import sage_queue itself"
        )


def _import_parent(path: str) -> None:
    """Imports what owns `path`, or puts an empty package there if nothing does; leaves our own paths to `_put`."""
    if path in OLD_PATHS or path in sys.modules:
        return
    outer = path.rpartition(".")[0]
    if outer:
        _import_parent(outer)
    if importlib.util.find_spec(path) is None:
        _put(path, {})
    else:
        importlib.import_module(path)


def _put(path: str, content: dict[str, object]) -> None:
    """Puts a package with `content` and no files at `path`, so that no module of another distribution is found below it."""
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(path, None, is_package=True))
    module.__doc__ = "Another name of `sage_queue`." if content else None
    vars(module).update(content)
    sys.modules[path] = module
    outer, _, name = path.rpartition(".")
    if outer:
        setattr(sys.modules[outer], name, module)
