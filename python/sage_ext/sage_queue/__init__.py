"""An import path of SAGE's first queue; everything lives in `sage_queue`.

`sage_ext` is a namespace package (no __init__.py), so that this never hides another distribution's `sage_ext`.
"""

from sage_queue import *  # noqa: F403
from sage_queue import SageQueue as _Ours
from sage_queue import __all__ as __all__

from .python import sage_queue as _implementation

if _implementation.SageQueue is not _Ours:  # another distribution wrote its files over some of these
    raise ImportError(
        f"{_implementation.__file__} belongs to another queue than {__file__}: uninstall one of the two distributions, "
        "or import sage_queue itself"
    )
