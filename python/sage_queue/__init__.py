"""sage_queue — a work queue in shared memory, used exactly as `queue.Queue`, by any number of processes."""

from . import _errors, _native
from ._errors import *  # noqa: F403
from ._held import Lease, Reservation
from ._queue import (
    SageQueue,
    SageQueueRef,
    collect_garbage,
    create_queue,
    destroy_queue,
    list_queues,
    open_queue,
)
from ._ready import wait

__version__: str = _native.VERSION

__all__ = [
    "Lease",
    "Reservation",
    "SageQueue",
    "SageQueueRef",
    "collect_garbage",
    "create_queue",
    "destroy_queue",
    "list_queues",
    "open_queue",
    "wait",
]
__all__ += _errors.__all__
