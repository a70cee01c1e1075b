"""Floor 0: serializers — objects to bytes and back — and what a message looks like.

A serializer works in the caller's process, before anything is reserved in the queue and after a message has been taken out of it;
so its errors surface where the object is.  It knows neither queue nor shared memory: bytes out, any buffer in.

With "raw", "msgpack" and a serializer of the caller's own, a message is what the serializer wrote.  With "pickle" and "cloudpickle"
it is one of these, told apart by the first byte.  Numbers are little-endian on every machine that this runs on, offsets count from
the message's beginning, and `| 64` means zeros up to the next multiple of 64: the messages' own memory is aligned to that, too.

    80 ...                                                     a pickle, and nothing else
    01 00 00 00  count:4  pickle bytes:8  size:8 * count       a pickle whose `count` buffers lie behind it, so that they are written
       pickle  | 64 buffer  | 64 buffer  ...                   and read where they are; the message ends with the last one
    02 00 * 63  content                                        a bytes object, from offset 64 to the message's end
    03 00 * 63  content                                        a bytearray, likewise
    04  value                                                  plain data: nothing but dict, list, tuple, str, bytes, bytearray,
                                                               int, float, bool, None; plain.c says how it is written

The pickles are of protocol 5.  Which buffers were read-only is said in the pickle (READONLY_BUFFER).  Buffers up to 1 KiB, and bytes
inside of other objects, stay in the pickle; bytes and bytearrays from 256 bytes on travel as 02 and 03.  What is plain data is decided
by plain.c: what comes out is what pickle would have given.  frame.c and plain.c write and read all this, and nothing in Python does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    #: Takes a buffer that a pickler offers; False: it goes beside the pickle.
    Gather = Callable[[Any], bool]

    class Serializer(Protocol):
        """What `serializer=` takes beside a name.  A `name` attribute (str) is recorded in the queue; else the class's name is."""

        def dumps(self, item: Any, /) -> Any: ...
        def loads(self, buffer: Any, /) -> Any: ...


try:
    from _pickle import dumps as _pickle_dumps, loads as _pickle_loads  # pickle's own functions, without the import of re
except ImportError:
    from pickle import dumps as _pickle_dumps, loads as _pickle_loads

#: Pickle protocol 5: the newest that every supported Python writes and reads.
PROTOCOL = 5

NAME_MAX_BYTES = 31

#: The head of a message that is a bytes object.
BYTES_HEAD = b"\x02" + bytes(63)

_ALIGNMENT = 64


class Codec:
    """One serializer.

    name        what is recorded in the queue
    framed      messages are as above, with frames; else they are what `dumps` gives
    dumps       framed: (item, PROTOCOL, buffer_callback=) -> bytes; else (item) -> bytes-like; None: the item is the message
    with_torch  framed: the same, for when torch is loaded, and tensors can be in an item
    loads       (bytes-like) -> item, framed also with `buffers=`; None: the message is the item
    own         the caller's object, if it is one
    """

    __slots__ = ("name", "framed", "dumps", "with_torch", "loads", "own")

    def __init__(
        self,
        name: str,
        dumps: Callable[..., Any] | None,
        loads: Callable[..., Any] | None,
        *,
        with_torch: Callable[..., bytes] | None = None,
        own: Serializer | None = None,
    ) -> None:
        self.name = name
        self.framed = with_torch is not None
        self.dumps = dumps
        self.with_torch = with_torch
        self.loads = loads
        self.own = own


def _pickle_with_torch(item: Any, protocol: int, *, buffer_callback: Gather) -> bytes:
    if _with_torch is None:
        _import_torch()
    return _with_torch.pickle(item, protocol, buffer_callback)  # type: ignore[no-any-return]


def _cloudpickle_with_torch(item: Any, protocol: int, *, buffer_callback: Gather) -> bytes:
    if _with_torch is None:
        _import_torch()
    return _with_torch.cloudpickle(item, protocol, buffer_callback)  # type: ignore[no-any-return]


_with_torch: Any = None  # our module _torch, once it is needed; an import statement would cost 0.3 us every time


def _import_torch() -> None:
    global _with_torch
    try:
        from . import _torch
    except (ImportError, AttributeError):  # it is called torch, and is something else
        _with_torch = _WithoutTorch
    else:
        _with_torch = _torch


class _WithoutTorch:
    @staticmethod
    def pickle(item: Any, protocol: int, gather: Gather) -> bytes:
        return _pickle_dumps(item, protocol, buffer_callback=gather)

    @staticmethod
    def cloudpickle(item: Any, protocol: int, gather: Gather) -> bytes:
        dumps: Any = _READY["cloudpickle"].dumps
        written: bytes = dumps(item, protocol, buffer_callback=gather)
        return written


def _cloudpickle() -> Codec:
    dumps = _import("cloudpickle", "cloudpickle").dumps
    return Codec("cloudpickle", dumps, _pickle_loads, with_torch=_cloudpickle_with_torch)


def _msgpack() -> Codec:
    msgpack = _import("msgspec.msgpack", "msgpack")
    return Codec("msgpack", msgpack.encode, msgpack.decode)


def _import(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"serializer={extra!r} needs the package {package}: pip install {package}") from error


_READY = {
    "pickle": Codec("pickle", _pickle_dumps, _pickle_loads, with_torch=_pickle_with_torch),
    "raw": Codec("raw", None, None),
}
_ON_DEMAND = {"cloudpickle": _cloudpickle, "msgpack": _msgpack}


# ---- which one ----


def find_codec(serializer: str | Serializer) -> Codec:
    """The codec of that name, or one that uses the caller's object.

    Raises ImportError where a package is missing, ValueError for an unknown name or an object that cannot be one.
    """
    if not isinstance(serializer, str):
        return _own_codec(serializer)
    if serializer in _ON_DEMAND and serializer not in _READY:
        _READY[serializer] = _ON_DEMAND[serializer]()
    try:
        return _READY[serializer]
    except KeyError:
        raise ValueError(
            f"serializer={serializer!r} is not known; choose one of {', '.join(map(repr, {**_READY, **_ON_DEMAND}))}, or give an object "
            "with dumps(item) and loads(buffer).  To use a reference to a queue that was made with such an object, pass one: "
            "ref.get_queue(serializer=...)"
        ) from None


def _own_codec(serializer: Serializer) -> Codec:
    dumps, loads = getattr(serializer, "dumps", None), getattr(serializer, "loads", None)
    if not callable(dumps) or not callable(loads):
        raise ValueError(f"serializer={serializer!r} is not known: neither a name nor an object with dumps(item) and loads(buffer)")
    name = getattr(serializer, "name", None)
    if name is None:  # a class or a module can be a serializer, too
        own = getattr(serializer, "__qualname__", None) or getattr(serializer, "__name__", None)
        name = own or type(serializer).__qualname__
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= NAME_MAX_BYTES or "\0" in name:
        raise ValueError(
            f"serializer={serializer!r} has the name {name!r}, which is recorded in the queue: it must be a str of 1 to {NAME_MAX_BYTES} "
            "bytes; give the object a `name` attribute"
        )
    if name in _READY or name in _ON_DEMAND:
        raise ValueError(f"serializer={serializer!r} has the name of another one, {name!r}; give it a `name` attribute of its own")
    return Codec(name, dumps, loads, own=serializer)


# ---- arrays that are written in place ----


class _Reduced:
    """Pickles as the object that this makes."""

    __slots__ = ("made",)

    def __init__(self, *made: Any) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


def array_head(shape: tuple[int, ...], dtype: Any, order: str, nbytes: int) -> bytes:
    """What stands before an array's bytes in a message of kind 01: as numpy would have pickled it, without there being one."""
    import numpy

    reduced: Any = numpy.empty(0).__reduce_ex__(PROTOCOL)
    make, arguments = reduced[:2]
    if not isinstance(arguments[0], _picklebuffer()):  # it falls back to its older way where it has no memory for this one
        raise MemoryError("numpy had no memory to say how an array is pickled")
    outside: Any = _picklebuffer()(bytearray())  # writable, as the array is to be
    pickle = _pickle_dumps(_Reduced(make, (outside, dtype, shape, order)), PROTOCOL, buffer_callback=lambda buffer: False)
    head = b"\x01\0\0\0" + (1).to_bytes(4, "little") + len(pickle).to_bytes(8, "little") + nbytes.to_bytes(8, "little") + pickle
    return head + bytes(-len(head) % _ALIGNMENT)


def _picklebuffer() -> Any:
    try:
        from _pickle import PickleBuffer
    except ImportError:
        from pickle import PickleBuffer
    return PickleBuffer


# ---- whose fault ----


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
