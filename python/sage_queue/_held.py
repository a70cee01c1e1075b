"""Floor 2: what a user holds of a queue — a message that is being worked on, room that is being filled.

Neither costs the others anything but its room in the arena, however long it is held.  Each gives itself back when it is dropped.
"""

from __future__ import annotations

import math
import operator
from types import GenericAlias

from . import _native
from ._codec import BYTES_HEAD, array_head
from ._native import FOREVER, now_ns

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Generic, Literal, TypeVar

    T = TypeVar("T")

    class WithItemType(Generic[T]):
        pass

else:
    T = object

    class WithItemType:
        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)


def deadline_of(block: bool, timeout: float | None) -> int:
    """The absolute deadline, which bounds the whole call: 0 does not wait."""
    if not block:
        return 0
    if timeout is None:
        return FOREVER
    if type(timeout) is not float and type(timeout) is not int:
        timeout = _seconds(timeout)
    if not timeout >= 0:
        raise ValueError("'timeout' must be a non-negative number")
    try:
        return min(now_ns() + int(timeout * 1_000_000_000), FOREVER)
    except OverflowError:
        return FOREVER


def _seconds(timeout: Any) -> float:
    """A number of any type as one that counts: one of numpy's small integers would be multiplied within its 8 bits."""
    kind = type(timeout)
    if not hasattr(kind, "__float__") and not hasattr(kind, "__index__"):
        raise TypeError(f"'timeout' must be a number of seconds, or None to wait for ever, not {kind.__name__} ({timeout!r})")
    try:
        return float(timeout)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if timeout > 0 else -math.inf


class Lease(WithItemType[T]):
    """A message that is being worked on.  If this process dies, another consumer gets it.

    attempts  how often the message has been handed out, this time included

    As a context manager it acknowledges when it is left, and gives back when it is left by an exception.  One that is dropped without
    either gives back, as does closing the queue.  It belongs to the process that took it: a forked child cannot end it.
    """

    __slots__ = ("attempts", "_queue_name", "_handle", "_taken", "_value", "_queue")

    attempts: int

    def __init__(self, queue: object, queue_name: str, handle: Any, taken: _native.Taken, value: T) -> None:
        self.attempts = taken.attempts
        self._queue = queue  # which would else be closed, and take the message back, if its user keeps nothing but this
        self._queue_name = queue_name
        self._handle = handle
        self._taken: _native.Taken | None = taken
        self._value: tuple[T] | None = (value,)

    @property
    def value(self) -> T:
        """The item.  ValueError if the message has been given back."""
        if self._value is None:
            raise ValueError("the message has been given back, and its value with it")
        return self._value[0]

    def ack(self) -> None:
        """The work is done: the message is gone for good, and counts as marked with task_done().

        Raises ValueError if the lease has ended already, QueueClosed if the queue was closed (and the message went back).
        """
        status = self._end().ack()
        if status == 0:
            _native.task_done(self._handle)
            return
        self._value = None
        if status == _native.INVALID:
            raise ValueError("this message belongs to the process that took it, and that is another one")
        raise _native.error_of(status, name=self._queue_name, handle=self._handle)

    def nack(self) -> None:
        """Give the message back: the next consumer gets it, before younger ones.  `value` is gone.

        Raises ValueError if the lease has ended already.
        """
        taken = self._end()
        self._value = None
        taken.nack()  # whatever it answers, the message is no longer ours

    def _end(self) -> _native.Taken:
        taken, self._taken = self._taken, None
        if taken is None:
            raise ValueError("the lease has ended: the message was acknowledged or given back before")
        return taken

    def __enter__(self) -> Lease[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._taken is None:  # ended by hand
            return
        if kind is None:
            self.ack()
        else:
            self.nack()

    def __repr__(self) -> str:
        state = "ended" if self._taken is None else "held"
        return f"<{type(self).__name__} of {self._queue_name!r}: attempt {self.attempts}, {state}>"


class Reservation(WithItemType[T]):
    """Room in a queue's memory, to be filled in place: as a context manager it gives what to fill, puts it when it is left, and gives
    it up when it is left by an exception.

    After that the memory belongs to whoever gets the message, and must not be written any more.  The memoryview is released and the
    array made read-only; other views that were made of them meanwhile are the user's to let go.  What still looks at it never
    crashes.  A reservation that was given up keeps its room until nothing looks at it.
    """

    __slots__ = ("_port", "_open", "_timeout")

    def __init__(self, port: _native.Port, block: _native.Block, target: T, timeout: float | None) -> None:
        self._port = port
        self._open: tuple[_native.Block, T] | None = (block, target)
        self._timeout = timeout

    @property
    def target(self) -> T:
        """What to fill: a memoryview, or a numpy array.  ValueError if the reservation is over."""
        return self._still_open()[1]

    def commit(self) -> None:
        """Put what has been filled in, waiting for room for one more message, at most as long as was waited for the reservation.

        Raises Full, ShutDown or QueueClosed, and then the reservation is given up; ValueError if it is over already.
        """
        self._port.commit(self._end(), deadline_of(True, self._timeout))

    def abort(self) -> None:
        """Give it up: nothing is put.  ValueError if it is over already."""
        self._end()

    def _still_open(self) -> tuple[_native.Block, T]:
        if self._open is None:
            raise ValueError("the reservation is over: it was committed or given up before")
        return self._open

    def _end(self) -> _native.Block:
        block, target = self._still_open()
        self._open = None
        if isinstance(target, memoryview):
            try:
                target.release()
            except BufferError:  # something else looks at it
                pass
        else:
            target.flags.writeable = False  # type: ignore[attr-defined]
        return block

    def __enter__(self) -> T:
        return self.target

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is None:  # ended by hand
            return
        if kind is None:
            self.commit()
        else:
            self.abort()


def reserve_bytes(port: _native.Port, nbytes: int, timeout: float | None, *, framed: bool) -> Reservation[memoryview]:
    size = operator.index(nbytes)
    if size < 0:
        raise ValueError(f"nbytes={size} is negative")
    head = BYTES_HEAD if framed else b""
    block = port.reserve(len(head) + size, deadline_of(True, timeout))
    memory = memoryview(block)
    memory[: len(head)] = head
    return Reservation(port, block, memory[len(head) :], timeout)


def reserve_array(
    port: _native.Port,
    shape: int | Sequence[int],
    dtype: Any,
    order: Literal["C", "F"],
    timeout: float | None,
    *,
    framed: bool,
) -> Reservation[Any]:
    import numpy

    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"an array of {kind} holds references to Python objects; those mean nothing in another process")
    if order not in ("C", "F"):
        raise ValueError(f'order={order!r} is not known; choose "C" or "F"')
    given: Any = shape
    lengths = tuple(map(operator.index, given)) if hasattr(given, "__iter__") else (operator.index(given),)
    if any(length < 0 for length in lengths):
        raise ValueError(f"shape={shape!r} has a negative length")
    size = math.prod(lengths) * kind.itemsize
    head = array_head(lengths, kind, order, size) if framed else b""
    block = port.reserve(len(head) + size, deadline_of(True, timeout))
    memory = memoryview(block)
    memory[: len(head)] = head
    try:
        array = numpy.ndarray(lengths, kind, memory[len(head) :], order=order)
    except BaseException:  # numpy knows no array of so many dimensions, say
        del memory, block  # else the exception would keep the room, for as long as somebody keeps it
        raise
    return Reservation(port, block, array, timeout)
