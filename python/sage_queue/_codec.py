"""Floor 0: serializers — objects to bytes and back.

A serializer works in the caller's process, before anything is reserved in the queue and after a message has been taken out of it;
so its errors surface where the object is.  It knows neither queue nor shared memory: bytes out, any buffer in.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

try:
    from _pickle import dumps as _pickle_dumps, loads as _pickle_loads  # pickle's own functions, without the import of re
except ImportError:
    from pickle import dumps as _pickle_dumps, loads as _pickle_loads

#: Pickle protocol 5: the newest that every supported Python writes and reads.
PROTOCOL = 5


class Codec:
    """One serializer.  `dumps(item, PROTOCOL)` gives bytes; `loads(bytes)` gives the item back, or is None: the bytes are the item."""

    __slots__ = ("name", "dumps", "loads")

    def __init__(self, name: str, dumps: Callable[[Any, int], bytes], loads: Callable[[bytes], Any] | None) -> None:
        self.name = name
        self.dumps = dumps
        self.loads = loads


def _raw_dumps(item: Any, protocol: int) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, (bytearray, memoryview)):
        return bytes(item)
    raise TypeError(f'serializer="raw" takes bytes, bytearray or memoryview, not {type(item).__name__}')


_CODECS = {
    "pickle": Codec("pickle", _pickle_dumps, _pickle_loads),
    "raw": Codec("raw", _raw_dumps, None),
}


def find_codec(name: str) -> Codec:
    try:
        return _CODECS[name]
    except (KeyError, TypeError):
        raise ValueError(f"serializer={name!r} is not known; choose one of {', '.join(map(repr, _CODECS))}") from None


def came_from_signal_handler(error: BaseException) -> bool:
    """Whether `error` was raised by one of this process's signal handlers, not by the code that it interrupted.

    An alarm that goes off while an object is being pickled says nothing about the object.
    """
    import signal

    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False
