"""Floor 2: SageQueueManager, the queues of one program under one roof."""

from __future__ import annotations

import _thread
import os

from ._address import full_name, parse_maxsize, user_namespace
from ._queue import SageQueue

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


_lock = _thread.allocate_lock()  # of all managers: it is held only while one makes a queue, or forgets its queues


def _new_lock() -> None:
    """A thread that held it is not in the child."""
    global _lock
    _lock = _thread.allocate_lock()


os.register_at_fork(after_in_child=_new_lock)


class SageQueueManager:
    """Makes queues, knows them by name, and closes them all at once.

    namespace, enable_multi_tenant  as in SageQueue, for every queue of this manager; names are relative to them

    Each name has one handle in a manager, whoever asks for it; any thread may ask at any time.  What is closed, here or by its
    user, is no longer known.  Other processes have managers of their own, which reach the same queues.
    """

    def __init__(self, namespace: str | None = None, enable_multi_tenant: bool | None = None) -> None:
        if namespace is not None:
            full_name(namespace)  # for its errors
        self.namespace = namespace
        self.enable_multi_tenant = enable_multi_tenant
        self._prefix = user_namespace(namespace, enable_multi_tenant)
        self._queues: dict[str, SageQueue[Any]] = {}

    def create_queue(self, name: str, maxsize: int = 0, **options: Any) -> SageQueue[Any]:
        """The queue of that name: this manager's handle if it has one, else SageQueue(name, maxsize, ...).

        Raises ValueError or TypeError for a name or a maxsize that makes no sense, also if it has one.
        """
        full_name(name, self._prefix)
        parse_maxsize(maxsize)
        with _lock:
            queue = self._queues.get(name)
            if queue is None or queue.is_closed():
                queue = self._queues[name] = SageQueue(
                    name, maxsize, namespace=self.namespace, enable_multi_tenant=self.enable_multi_tenant, **options
                )
            return queue

    def get_queue(self, name: str) -> SageQueue[Any]:
        """This manager's handle on that queue; KeyError if it has none."""
        queue = self._queues.get(name)
        if queue is None or queue.is_closed():
            raise KeyError(name)
        return queue

    def cleanup_all(self) -> None:
        """Close every queue of this manager, which can be used afterwards.  May be called twice."""
        with _lock:
            queues, self._queues = self._queues, {}
        for queue in queues.values():
            queue.close()

    def __enter__(self) -> SageQueueManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup_all()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._queues)} queues>"
