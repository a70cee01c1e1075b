"""Floor 2: several items with one call, and all items in a row.

A batch goes through `_native.Port` in one call, as a single item does, and what is said in _queue.py of Ctrl-C, alarms and kills holds for
the batch as a whole: a call that raises has put nothing, or taken nothing.
"""

from __future__ import annotations

from . import _native
from ._errors import Empty, MessageTooLarge, ShutDown, empty, full
from ._held import T, WithItemType, deadline_of

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Batches(WithItemType[T]):
    """The part of SageQueue that moves several items at once."""

    _port: _native.Port

    if TYPE_CHECKING:

        def qsize(self) -> int: ...

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> None:
        """Put all of the items into the queue, in order and one behind another, or none of them; waiting for room for all if need be, at
        most `timeout` seconds.  Consumers are woken once.

        A batch that could never be in the queue at once (it has more than `maxsize` items, or needs more than half of `capacity`, or more
        than `arena`) goes in as several parts, each of them all or none, if the wait has no bound.  If that ends between two of them
        (by shutdown(), close(), or a signal handler that raises), the exception's `put_items` says how many items were put.

        Raises Full (no room for all in time), ShutDown, MessageTooLarge (an item, or with block=False or a timeout the batch, can
        never fit), QueueClosed, ValueError (an item cannot be serialized), or whatever iterating over the items raises.
        On any of these nothing was put, but for what `put_items` counts.
        """
        self._port[None if block and timeout is None else deadline_of(block, timeout), _refuse_batch] = items

    def put_nowait_batch(self, items: Iterable[T]) -> None:
        """Put all of the items or none of them, without waiting.  (From ray.util.queue.Queue.)

        Raises as put_many(items, block=False) does, but for Full also if the batch could never be in the queue at once.
        """
        self._port[0, _refuse_batch_as_full] = items

    def get_many(
        self, max_items: int | None = None, max_bytes: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[T]:
        """Take the oldest items out of the queue: wait for one if need be, at most `timeout` seconds, then take what is there.

        At most `max_items` (None: 1024), for they keep their room in the queue until all of them have been deserialized; and behind the
        first no more than fit into `max_bytes` of messages.

        Raises Empty (none in time), ShutDown, QueueClosed (in all of these nothing was taken), or ValueError: the oldest message
        cannot be deserialized, and is gone (with max_attempts, it has had one).  If a younger one cannot be, the items before it are
        returned, and the next get meets it.
        """
        if max_items is not None and max_items < 1:
            raise ValueError("'max_items' must be a positive number")
        if max_bytes is not None and max_bytes < 0:
            raise ValueError("'max_bytes' must be a non-negative number")
        deadline = None if block and timeout is None else deadline_of(block, timeout)
        return self._port[deadline, max_items, max_bytes, False]

    def get_nowait_batch(self, num_items: int) -> list[T]:
        """Take `num_items` items out of the queue, or none of them, without waiting.  (From ray.util.queue.Queue.)

        Raises Empty (fewer are there; nothing was taken), ShutDown, QueueClosed, or ValueError: one of the messages cannot be
        deserialized, and is gone (with max_attempts, it has had one); the others go back, and come before younger ones.
        """
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        size = self.qsize()
        if num_items == 0:
            return []
        if size < num_items and size:  # with none, the port knows whether there will ever be any
            raise empty(f"Cannot get {num_items} items from queue of size {size}.")
        return self._port[0, num_items, None, True]

    def drain(self) -> list[T]:
        """Take all items that are there now, without waiting: none if there are none, also after shutdown().

        Raises QueueClosed, or ValueError as get_many() does.
        """
        size = self.qsize()
        try:
            return self._port[0, size, None, False] if size else []
        except (Empty, ShutDown):
            return []

    # `5 in q` would take everything before the first 5, and wait for it; queue.Queue refuses both with a TypeError, too.
    __contains__ = None
    __reversed__ = None

    def __iter__(self) -> Iterator[T]:
        """Take items one by one, waiting for each, until the queue is shut down and nothing is left in it.

        One that is dropped before loses nothing: an item is taken only when it is asked for.  What iterates itself does ask for them:
        list(q) takes all until shutdown, and `a, b = q` a third one, to see that there is none.
        """
        port = self._port
        while True:
            try:
                item = port[None]
            except ShutDown:
                return
            yield item


def _refuse_batch(items: int, bytes: int) -> None:
    raise MessageTooLarge(
        f"the batch of {items} items ({bytes} bytes) can never be in the queue at once: its items may number `maxsize`, and need half of "
        "`capacity` and all of `arena`; put fewer at a time, or wait without a bound, and it goes in as several parts"
    )


def _refuse_batch_as_full(items: int, bytes: int) -> None:
    raise full(f"Queue is full: a batch of {items} items ({bytes} bytes) can never be in it at once; put fewer at a time")
