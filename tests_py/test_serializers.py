"""Which serializer a queue has: by name or as an object, recorded with the queue, the same for everybody."""

from __future__ import annotations

import array
import marshal
import pickle
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import sage_queue
from sage_queue import SageQueue, SageQueueRef, _native, open_queue

SOON = 60.0
Run = Callable[..., subprocess.CompletedProcess[str]]


# ---- raw ----


def arrays() -> dict[str, Any]:
    numpy = pytest.importorskip("numpy")
    return {
        "numpy": numpy.arange(5000, dtype="<u4"),
        "numpy 2-D": numpy.arange(6000.0).reshape(20, 300),
        "Fortran-ordered": numpy.asfortranarray(numpy.arange(6000.0).reshape(20, 300)),
        "not contiguous": numpy.arange(9000)[::3],
        "of times": numpy.arange(5000).astype("M8[ns]"),
        "structured": numpy.zeros(500, [("a", "i4"), ("b", "f8")]),
        "array.array": array.array("d", range(1000)),
        "memoryview with gaps": memoryview(bytes(range(256)))[::2],
    }


@pytest.mark.parametrize("name_of", list(arrays()) if pytest.importorskip("numpy") else [])
def test_a_raw_queue_takes_whatever_has_bytes(name_of: str) -> None:
    item = arrays()[name_of]
    expected = item.tobytes() if hasattr(item, "tobytes") else bytes(item)
    with SageQueue[Any](serializer="raw") as q:
        q.put(item)
        got = q.get()
        assert type(got) is bytes and got == expected
        q.put(item)
        view = q.get(copy=False)
        assert type(view) is memoryview and view == expected


def test_a_raw_queue_refuses_an_array_of_objects() -> None:
    numpy = pytest.importorskip("numpy")
    with SageQueue[Any](serializer="raw") as q:
        with pytest.raises(ValueError, match="^Failed to serialize item: an array of Python objects has no bytes"):
            q.put(numpy.array([object()] * 10))
        assert q.empty()


def test_a_bytearray_can_be_resized_again_once_it_is_put() -> None:
    with SageQueue[Any](serializer="raw") as q, SageQueue[Any]() as p:
        item = bytearray(100_000)
        for each in (q, p):
            each.put(item)
            item.append(1)
            with pytest.raises(sage_queue.MessageTooLarge):
                each.put(bytearray(100 << 20))
        assert len(q.get()) == 100_000 and len(p.get()) == 100_001


# ---- msgpack ----


def test_msgpack_takes_plain_data_and_the_message_is_plain_msgpack() -> None:
    msgspec = pytest.importorskip("msgspec")
    item = {"numbers": [1, 2.5, -3], "text": "ü", "bytes": b"\0\xff", "nothing": None, "yes": True, "long": "x" * 100_000}
    with SageQueue[Any](serializer="msgpack") as q:
        for mode in ({}, {"copy": False}, {"copy": False, "writable": True}):
            q.put(item)
            assert q.get(**mode) == item
            assert q.get_stats()["held"] == 0
        q.put([1, "two"])
        ffi, lib = _native.ffi, _native.lib
        size, buffer = ffi.new("size_t *"), ffi.new("char[]", 100)
        assert lib.ringbuf_get(q._handle, size, buffer, 100, 0) == 0
        assert bytes(ffi.buffer(buffer, size[0])) == msgspec.msgpack.encode([1, "two"]) == b"\x92\x01\xa3two"
        with pytest.raises(ValueError, match="^Failed to serialize item: .*object"):
            q.put(object())
        assert _native.put_bytes(q._handle, b"\xc1") == 0
        with pytest.raises(ValueError, match="^Failed to deserialize item: "):
            q.get()
        with pytest.raises(ValueError, match="serializer='msgpack' has no message for an array in place"):
            q.reserve_array(3)
        with q.reserve(6) as buffer:
            buffer[:] = b"\x92\x01\xa3two"
        assert q.get() == [1, "two"]


# ---- cloudpickle ----


def test_cloudpickle_takes_functions_and_leaves_buffers_beside() -> None:
    pytest.importorskip("cloudpickle")
    numpy = pytest.importorskip("numpy")
    factor = 3
    with SageQueue[Any](serializer="cloudpickle") as q:
        q.put({"function": lambda x: factor * x, "array": numpy.ones(100_000)})
        got = q.get(copy=False)
        assert got["function"](5) == 15
        assert not got["array"].flags.writeable and got["array"].sum() == 100_000
        assert q.get_stats()["held"] == 1
        with q.reserve_array(1000, "u1") as filled:
            filled[:] = 4
        assert q.get().sum() == 4000
        q.put("text")
        assert q.get() == "text"


@pytest.mark.parametrize(("serializer", "package"), [("cloudpickle", "cloudpickle"), ("msgpack", "msgspec")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(serializer: str, package: str, run_python: Run) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from sage_queue import SageQueue
try:
    SageQueue(serializer={serializer!r})
except ImportError as error:
    print(error)
"""
    wanted = f"serializer='{serializer}' needs the package {package}: pip install {package}\n"
    assert run_python(code).stdout == wanted


# ---- objects ----


class Reversing:
    """Text, backwards.  It remembers what it was given to read."""

    name = "reversing"

    def __init__(self) -> None:
        self.seen: list[type] = []

    def dumps(self, item: str) -> bytes:
        return item[::-1].encode()

    def loads(self, buffer: Any) -> str:
        self.seen.append(type(buffer))
        return bytes(buffer).decode()[::-1]


def test_an_object_can_be_the_serializer() -> None:
    own = Reversing()
    with SageQueue[str](serializer=own) as q:
        assert q.serializer == q.get_reference().serializer == "reversing"
        for size in (0, 3, 5000, 100_000):
            q.put("abc" * size)
            assert q.get() == "abc" * size
            q.put("abc" * size)
            assert q.get(copy=False) == "abc" * size
        assert set(own.seen) == {bytes, memoryview}
        with pytest.raises(ValueError, match="^Failed to serialize item: 'int' object"):
            q.put(3)  # type: ignore[arg-type]
        assert _native.put_bytes(q._handle, b"\xff") == 0
        with pytest.raises(ValueError, match="^Failed to deserialize item: .*utf-8"):
            q.get()
        q.put("job")
        with q.lease() as message:
            assert message.value == "job"
        with q.reserve(3) as buffer:
            buffer[:] = b"cba"
        assert q.get() == "abc"


class Nameless:
    dumps = staticmethod(marshal.dumps)
    loads = staticmethod(marshal.loads)


@pytest.mark.parametrize(("serializer", "name"), [(Nameless(), "Nameless"), (Nameless, "Nameless"), (marshal, "marshal")])
def test_without_a_name_of_its_own_it_is_its_class_that_is_recorded(serializer: Any, name: str) -> None:
    with SageQueue[Any](serializer=serializer) as q:
        assert q.serializer == name
        q.put([1, "two"])
        assert q.get() == [1, "two"]


def test_a_serializer_may_give_anything_with_bytes_and_nothing_else() -> None:
    class Giving(Reversing):
        def dumps(self, item: Any) -> Any:
            return item

        def loads(self, buffer: Any) -> Any:
            return bytes(buffer)

    with SageQueue[Any](serializer=Giving()) as q:
        for item in (b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"a.b.c")[::2], array.array("B", b"abc")):
            q.put(item)
            assert q.get() == b"abc"
        with pytest.raises(ValueError, match=r"^Failed to serialize item: the serializer's dumps\(\) gives bytes, not str$"):
            q.put("abc")
        assert q.empty()


def _named(what: Any) -> Any:
    own = Reversing()
    own.name = what
    return own


@pytest.mark.parametrize(
    ("serializer", "text"),
    [
        (object(), "is not known: neither a name nor an object with dumps"),
        (7, "is not known: neither a name nor an object with dumps"),
        (_named(""), "it must be a str of 1 to 31 bytes"),
        (_named("x" * 32), "it must be a str of 1 to 31 bytes"),
        (_named("ü" * 16), "it must be a str of 1 to 31 bytes"),
        (_named("a\0b"), "it must be a str of 1 to 31 bytes"),
        (_named(7), "it must be a str of 1 to 31 bytes"),
        (_named("pickle"), "has the name of another one, 'pickle'"),
        (_named("msgpack"), "has the name of another one, 'msgpack'"),
        (pickle, "has the name of another one, 'pickle'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_object_that_cannot_be_a_serializer_is_a_value_error(serializer: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SageQueue(serializer=serializer)


def test_another_serializer_than_the_queues_is_refused_and_both_are_named(name: str) -> None:
    pytest.importorskip("msgspec")
    with SageQueue[Any](name, serializer=Reversing()) as q:
        for other, told in (("pickle", "pickle"), ("raw", "raw"), ("msgpack", "msgpack"), (Nameless(), "Nameless")):
            with pytest.raises(ValueError, match=f"queue '{name}' was made with serializer='reversing'; .* not '{told}'"):
                SageQueue(name, serializer=other)
        with SageQueue[Any](name, serializer=Reversing()) as same:
            q.put("abc")
            assert same.get() == "abc"
        assert [reference.serializer for reference in sage_queue.list_queues()] == ["reversing"]
        assert q.get_stats()["participants"] == 1


def test_a_reference_needs_the_object_and_says_so(name: str) -> None:
    with SageQueue[Any](name, serializer=Reversing()) as q:
        q.put("abc")
        reference = SageQueueRef.from_json(q.get_reference().to_json())
        with pytest.raises(ValueError, match=r"serializer='reversing' is not known.*ref.get_queue\(serializer=\.\.\.\)"):
            reference.get_queue()
        with pytest.raises(ValueError, match="was made with serializer='reversing'; .* not 'Nameless'"):
            reference.get_queue(serializer=Nameless())
        with reference.get_queue(serializer=Reversing()) as again:
            assert again.get() == "abc"


def _answer(q: SageQueue[str], answers: SageQueue[str]) -> None:
    answers.put(q.get(timeout=SOON).upper())


def test_a_queue_that_is_handed_over_takes_its_serializer_along(context: Any) -> None:
    with SageQueue[str](serializer=Reversing()) as q, SageQueue[str]() as answers:
        child = context.Process(target=_answer, args=(q, answers))
        child.start()
        q.put("abc")
        assert answers.get(timeout=SOON) == "ABC"
        child.join(SOON)
        assert child.exitcode == 0


def test_every_named_serializer_is_recorded_and_found_by_a_reference() -> None:
    for serializer in ("pickle", "cloudpickle", "msgpack", "raw"):
        if serializer in ("cloudpickle", "msgpack"):
            pytest.importorskip({"cloudpickle": "cloudpickle", "msgpack": "msgspec"}[serializer])
        with SageQueue[Any](serializer=serializer) as q, pickle.loads(pickle.dumps(q.get_reference())).get_queue() as again:
            assert again.serializer == serializer
            again.put(b"text")
            assert q.get() == b"text"


def test_a_queue_is_opened_by_name_with_its_serializer(name: str) -> None:
    pytest.importorskip("msgspec")
    with SageQueue[Any](name, serializer="msgpack") as q:
        q.put(1)
        with pytest.raises(ValueError, match="was made with serializer='msgpack'; .* not 'pickle'"):
            open_queue(name)
        with open_queue(name, serializer="msgpack") as again:
            assert again.get() == 1


def test_a_program_that_needs_no_other_serializer_imports_none(run_python: Run) -> None:
    code = """
import sys
from sage_queue import SageQueue
q = SageQueue(); q.put({"a": 1}); q.get(); q.put(b"x" * 100_000); q.get(copy=False)
q.put(1)
with q.lease(): pass
print([name for name in ("numpy", "torch", "cloudpickle", "msgspec", "json", "typing") if name in sys.modules])
"""
    assert run_python(code).stdout == "[]\n"
