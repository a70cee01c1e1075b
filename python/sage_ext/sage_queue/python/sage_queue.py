"""The import path of the module that held SAGE's first queue; everything lives in `sage_queue`."""

from sage_queue import *  # noqa: F403
from sage_queue import __all__ as __all__
