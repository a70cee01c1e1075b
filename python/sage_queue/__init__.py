"""sage_queue — a work queue in shared memory, used exactly as `queue.Queue`, by any number of processes."""

from . import _errors, _native
from ._by_name import (
    cleanup_invalid_queues,
    cleanup_user_queues,
    collect_garbage,
    create_queue,
    destroy_queue,
    list_all_sage_queues,
    list_queues,
    open_queue,
)
from ._errors import *  # noqa: F403
from ._held import Lease, Reservation
from ._manager import SageQueueManager
from ._queue import SageQueue, SageQueueRef
from ._ready import wait

__version__: str = _native.VERSION

__all__ = [
    "Lease",
    "Reservation",
    "SageQueue",
    "SageQueueManager",
    "SageQueueRef",
    "cleanup_invalid_queues",
    "cleanup_user_queues",
    "collect_garbage",
    "create_queue",
    "destroy_queue",
    "list_all_sage_queues",
    "list_queues",
    "open_queue",
    "wait",
]
__all__ += _errors.__all__
