"""An import path of SAGE's first queue; everything lives in `sage_queue`.

`sage_ext` is a namespace package (no __init__.py), so that this never hides another distribution's `sage_ext`.
"""

from sage_queue import *  # noqa: F403
from sage_queue import __all__ as __all__
from sage_queue.compat import require_ours as _require_ours

from .python import sage_queue as _implementation

_require_ours(_implementation, __file__)
