"""Serializers by themselves, what a message looks like, and that what comes out is what went in."""

from __future__ import annotations

import gc
import pickle
import signal
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_queue import SageQueue, _native
from sage_queue._codec import PROTOCOL, came_from_signal_handler, find_codec

numpy = pytest.importorskip("numpy")

SMALL = 1024  # buffers of more than this go beside the pickle
LARGE = 256  # bytes and bytearrays from this size on are not pickled
MODES = [{}, {"copy": False}, {"copy": False, "writable": True}]
both_ways = pytest.mark.parametrize("mode", MODES, ids=["copy", "views", "writable views"])


def put_raw(q: SageQueue[Any], message: bytes) -> None:
    assert _native.put_bytes(q._handle, message) == 0


def get_raw(q: SageQueue[Any]) -> bytes:
    """The bytes of the next message, whatever they mean."""
    ffi, lib = _native.ffi, _native.lib
    size, buffer = ffi.new("size_t *"), ffi.new("char[]", 64 << 20)
    assert lib.ringbuf_get(q._handle, size, buffer, len(buffer), 0) == 0
    return bytes(ffi.buffer(buffer, size[0]))


def nothing_is_held(q: SageQueue[Any]) -> bool:
    """Whether all views are gone; those in a cycle of references go with a collection."""
    return q.get_stats()["held"] == 0 or gc.collect() >= 0 and q.get_stats()["held"] == 0


@pytest.fixture
def q() -> Iterator[SageQueue[Any]]:
    with SageQueue[Any]() as q:
        yield q


# ---- the format ----


def parse(message: bytes) -> tuple[bytes, list[bytes]]:
    """A message of kind 01, read as the head of _codec.py has it: its pickle and its buffers."""
    kind, zeros, count, pickle_bytes = struct.unpack_from("<B3sIQ", message)
    assert (kind, zeros) == (1, bytes(3))
    sizes = struct.unpack_from(f"<{count}Q", message, 16)
    position = 16 + 8 * count
    pickled = message[position : position + pickle_bytes]
    position += pickle_bytes
    buffers = []
    for size in sizes:
        start = -(-position // 64) * 64
        assert message[position:start] == bytes(start - position)
        buffers.append(message[start : start + size])
        position = start + size
    assert position == len(message)
    return pickled, buffers


def test_an_object_that_is_not_plain_and_without_large_buffers_is_a_bare_pickle(q: SageQueue[Any]) -> None:
    for item in ({1, 2}, 1j, 1 << 64, [b"x" * 100_000, {3}], numpy.zeros(SMALL, "u1")):
        q.put(item)
        message = get_raw(q)
        assert message[:2] == b"\x80\x05"
        assert message == pickle.dumps(item, 5)


def test_buffers_lie_behind_the_pickle_each_at_a_multiple_of_64(q: SageQueue[Any]) -> None:
    arrays = [numpy.arange(SMALL + 1 + 13 * n, dtype="u1") for n in range(5)]
    q.put({"name": "five", "arrays": arrays})
    pickled, buffers = parse(get_raw(q))
    assert buffers == [array.tobytes() for array in arrays]
    again = pickle.loads(pickled, buffers=buffers)
    assert again["name"] == "five"
    assert all((ours == theirs).all() for ours, theirs in zip(again["arrays"], arrays))


def test_what_any_pickler_writes_with_buffers_beside_is_read(q: SageQueue[Any]) -> None:
    array = numpy.arange(3000.0).reshape(30, 100)
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps([array, array[0].copy()], 5, buffer_callback=buffers.append)
    sizes = [buffer.raw().nbytes for buffer in buffers]
    message = struct.pack(f"<B3sIQ{len(sizes)}Q", 1, bytes(3), len(sizes), len(pickled), *sizes) + pickled
    for buffer in buffers:
        message += bytes(-len(message) % 64) + bytes(buffer)
    put_raw(q, message)
    one, row = q.get()
    assert (one == array).all() and (row == array[0]).all()


@pytest.mark.parametrize(("kind", "first"), [(bytes, 2), (bytearray, 3)])
def test_large_bytes_are_not_pickled(q: SageQueue[Any], kind: Any, first: int) -> None:
    content = kind(b"0123456789abcdef" * (LARGE // 16))
    q.put(content)
    assert get_raw(q) == bytes([first]) + bytes(63) + content
    q.put(content[1:])
    assert get_raw(q)[:1] == b"\4"


def test_pickle_writes_what_every_python_reads() -> None:
    codec = find_codec("pickle")
    item = {"data": [1, 2, 3], "meta": "SAGE"}
    assert codec.dumps(item, PROTOCOL) == pickle.dumps(item, 5)
    assert codec.loads(memoryview(pickle.dumps(item, 5))) == item


@pytest.mark.parametrize("size", [0, 1, 47, 48, 49, 100, 4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_raw_queue_gives_the_bytes_that_were_put(size: int, kind: Any) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    with SageQueue[Any](serializer="raw") as q:
        for _ in range(3):
            q.put(kind(data[:size]))
            got = q.get()
            assert type(got) is bytes and got == data[:size]


@pytest.mark.parametrize("size", [1, 100, 4000, 4080, 4096, 4100, 70_000, 2 << 20])
def test_a_pickled_message_of_any_size_comes_out_whole_between_smaller_ones(size: int) -> None:
    with SageQueue[Any](capacity="8 MiB") as q:
        for number in range(5):
            q.put(number)
            q.put(bytes([number]) * size)
            q.put(None)
            assert [q.get(), q.get(), q.get()] == [number, bytes([number]) * size, None]


def test_what_comes_out_owns_its_memory() -> None:
    with SageQueue[Any]() as q:
        q.put([bytearray(b"x" * 100_000), "y" * 50_000])
        got = q.get()
        for _ in range(100):
            q.put(b"z" * 100_000)
            q.get()
    assert got == [bytearray(b"x" * 100_000), "y" * 50_000]


# ---- round trips ----


def structured() -> Any:
    array = numpy.zeros(700, dtype=[("a", "i4"), ("b", "f8", (3,)), ("c", "S5")])
    array["a"] = numpy.arange(700)
    array["c"] = b"word"
    return array


class Large:
    """An object with 1000 buffers, of different sizes."""

    def __init__(self) -> None:
        self.parts = [numpy.full(SMALL + n, n % 251, "u1") for n in range(1000)]


ARRAYS = {
    "plain": lambda: numpy.arange(20_000, dtype="f4").reshape(100, 200),
    "structured": structured,
    "Fortran-ordered": lambda: numpy.asfortranarray(numpy.arange(20_000.0).reshape(100, 200)),
    "not contiguous": lambda: numpy.arange(40_000)[::3],
    "transposed view": lambda: numpy.arange(24_000).reshape(20, 30, 40).transpose(1, 0, 2),
    "zero size": lambda: numpy.zeros((0, 5)),
    "no dimensions": lambda: numpy.array(3.5),
    "of objects": lambda: numpy.array([1, "two", None] * 1000, dtype=object),
    "of times": lambda: numpy.arange(5000).astype("M8[ns]"),
    "of text": lambda: numpy.array(["ü" * 10, "b"] * 500),
    "big-endian": lambda: numpy.arange(5000, dtype=">i8"),
    "complex": lambda: numpy.arange(5000) * 1j,
    "half": lambda: numpy.arange(5000, dtype="f2"),
    "in the ring": lambda: numpy.arange(1500, dtype="u1"),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
@both_ways
def test_a_numpy_array_comes_out_equal_in_type_shape_and_order(q: SageQueue[Any], make: Any, mode: dict[str, Any]) -> None:
    array = make()
    q.put({"array": array})
    got = q.get(**mode)["array"]
    assert type(got) is numpy.ndarray
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.dtype.names == array.dtype.names
    assert (got == array).all()
    assert got.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc
    got = None
    assert nothing_is_held(q)


@both_ways
def test_an_object_with_a_thousand_buffers_comes_out_whole(q: SageQueue[Any], mode: dict[str, Any]) -> None:
    q.put(Large())
    got = q.get(**mode)
    assert len(got.parts) == 1000
    assert all((part == n % 251).all() and len(part) == SMALL + n for n, part in enumerate(got.parts))


@both_ways
@pytest.mark.parametrize("size", [100, SMALL + 1, 100_000], ids=["in band", "in the ring", "in the arena"])
def test_buffers_are_aligned_to_64_bytes_where_they_come_out(q: SageQueue[Any], size: int, mode: dict[str, Any]) -> None:
    for _ in range(5):
        q.put([numpy.zeros(size + n, "u1") for n in range(5)])
        for array in q.get(**mode):
            assert array.ctypes.data % 64 == 0 or size <= SMALL


@both_ways
def test_pyarrow_tables_and_batches_come_out_equal(q: SageQueue[Any], mode: dict[str, Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"n": list(range(20_000)), "s": [f"row {n}" if n % 7 else None for n in range(20_000)]})
    for item in (table, table.to_batches()[0], table["s"].chunk(0), table.slice(100, 5000)):
        q.put(item)
        got = q.get(**mode)
        assert type(got) is type(item) and got.equals(item)
        got.validate(full=True)


@both_ways
def test_a_pandas_frame_comes_out_equal(q: SageQueue[Any], mode: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "i": numpy.arange(10_000),
            "f": numpy.arange(10_000) * 0.5,
            "b": numpy.arange(10_000) % 3 == 0,
            "s": [f"text {n}" for n in range(10_000)],
            "t": pandas.date_range("2020-01-01", periods=10_000),
            "c": pandas.Categorical(["a", "b"] * 5000),
        }
    )
    q.put(frame)
    pandas.testing.assert_frame_equal(q.get(**mode), frame)
    q.put(frame["f"])
    pandas.testing.assert_series_equal(q.get(**mode), frame["f"])


@both_ways
def test_torch_tensors_keep_type_shape_strides_and_gradient(q: SageQueue[Any], mode: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24_000.0).reshape(100, 240)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "bfloat16": base.to(torch.bfloat16),
        "bool": base > 7,
        "complex": base.to(torch.complex64),
        "expanded": torch.ones(1, 5000).expand(100, 5000),
        "requires grad": base.clone().requires_grad_(),
        "no elements": torch.empty(0, 3),
        "no dimensions": torch.tensor(5.0),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    q.put(tensors)
    got = q.get(**mode)
    for name, tensor in tensors.items():
        same = got[name]
        assert type(same) is type(tensor), name
        assert (same.dtype, same.shape, same.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert same.requires_grad == tensor.requires_grad, name
        assert torch.equal(same, tensor), name


def test_torch_pickles_what_is_no_plain_tensor_and_its_registry_is_untouched(q: SageQueue[Any]) -> None:
    torch = pytest.importorskip("torch")
    import copyreg

    before = dict(copyreg.dispatch_table)
    for tensor in (torch.eye(100).to_sparse(), torch.ones(3000, dtype=torch.complex64).conj(), torch.arange(90_000)[::90]):
        q.put([tensor])
        (got,) = q.get()
        assert (got.layout, got.shape, got.dtype) == (tensor.layout, tensor.shape, tensor.dtype)
        assert torch.equal(got.to_dense(), tensor.to_dense())
    module = torch.nn.Linear(50, 50)
    q.put(module)
    got = q.get()
    assert torch.equal(got.weight, module.weight) and got.weight.requires_grad
    assert copyreg.dispatch_table == before


@pytest.mark.parametrize("torch", ["None", "types.ModuleType('torch')"])
@pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
def test_something_else_that_is_called_torch_does_no_harm(run_python: Any, torch: str, serializer: str) -> None:
    if serializer == "cloudpickle":
        pytest.importorskip("cloudpickle")
    code = f"""
import sys, types
import numpy
from sage_queue import SageQueue
q = SageQueue(serializer={serializer!r})
q.put([numpy.ones(3000)])
sys.modules["torch"] = {torch}
q.put({{"sum": numpy.ones(3000)}})
q.put({{1, 2}})
print(q.get()[0].sum(), q.get(copy=False)["sum"].sum(), q.get())
"""
    assert run_python(code).stdout == "3000.0 3000.0 {1, 2}\n"


@pytest.mark.parametrize("size", [0, 1, 47, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_come_out_as_bytes_and_views_of_large_ones_as_a_memoryview(q: SageQueue[Any], size: int, kind: Any) -> None:
    content = kind(bytes(range(256)) * (size // 256 + 1))[:size]
    q.put(content)
    got = q.get()
    assert type(got) is kind and got == content
    q.put(content)
    view = q.get(copy=False)
    assert view == content
    assert type(view) is (kind if size < LARGE else memoryview)
    if size >= LARGE:
        assert view.readonly and view.nbytes == size
        q.put(content)
        assert not q.get(copy=False, writable=True).readonly


def test_an_array_that_was_read_only_comes_out_read_only_and_another_does_not(q: SageQueue[Any]) -> None:
    for size in (100, 5000, 500_000):
        array = numpy.zeros(size)
        for writeable in (True, False):
            array.flags.writeable = writeable
            q.put([array])
            assert q.get()[0].flags.writeable == writeable


def test_one_buffer_that_is_in_an_object_twice_is_put_once(q: SageQueue[Any]) -> None:
    array = numpy.zeros(50_000)
    q.put([array, array])
    one, other = q.get()
    assert one is other
    assert q.get_stats()["bytes_put"] < 2 * array.nbytes


def test_an_object_that_puts_another_one_while_it_is_pickled_arrives_whole(q: SageQueue[Any]) -> None:
    class Nested:
        def __reduce__(self) -> Any:
            q.put([numpy.full(3000, 2, "u1")])
            return numpy.copy, (numpy.full(3000, 3, "u1"),)

    q.put([numpy.full(3000, 1, "u1"), Nested(), numpy.full(3000, 4, "u1")])
    assert [array[0] for array in q.get()] == [2]
    assert [array[0] for array in q.get()] == [1, 3, 4]


def test_a_buffer_that_is_not_contiguous_is_refused_by_the_pickler(q: SageQueue[Any]) -> None:
    with pytest.raises(ValueError, match="^Failed to serialize item: .*contiguous"):
        q.put(pickle.PickleBuffer(memoryview(bytearray(10_000))[::2]))
    assert q.empty()


def items() -> st.SearchStrategy[Any]:
    sizes = st.one_of(st.integers(0, 40), st.integers(SMALL - 2, SMALL + 70), st.integers(LARGE - 2, LARGE + 2), st.just(70_000))
    contents = sizes.map(lambda size: bytes(range(251)) * (size // 251 + 1)).flatmap(lambda text: sizes.map(lambda size: text[:size]))
    arrays = st.builds(
        lambda content, kind, order: numpy.frombuffer(content[: len(content) // 8 * 8], kind).reshape(-1, 1, order=order).copy(),
        contents,
        st.sampled_from(["u1", "<f8", ">i4", "S4"]),
        st.sampled_from("CF"),
    )
    leaves = st.one_of(st.none(), st.integers(), st.text(), contents, contents.map(bytearray), arrays)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5), max_leaves=12)


def same(one: Any, other: Any, exactly: bool) -> bool:
    """Equal, and (if exactly) of the same types: a view of bytes is a memoryview."""
    if isinstance(one, numpy.ndarray):
        return type(other) is numpy.ndarray and one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    if isinstance(one, (list, dict)):
        pairs = zip(one, other) if isinstance(one, list) else zip(one.values(), other.values())
        return type(one) is type(other) and len(one) == len(other) and all(same(a, b, True) for a, b in pairs)
    return one == other and (type(one) is type(other) or not exactly)


@settings(max_examples=150, deadline=None)
@given(item=items())
def test_any_object_comes_out_equal_both_ways(item: Any) -> None:
    with SageQueue[Any]() as q:
        for mode in MODES:
            q.put(item)
            assert same(item, q.get(**mode), exactly=not mode)
        assert nothing_is_held(q)


# ---- messages that are damaged ----


def frame(arrays: int, size: int) -> bytes:
    with SageQueue[Any]() as q:
        q.put([numpy.full(size, 65 + n, "u1") for n in range(arrays)])
        return get_raw(q)


FRAMES = {(arrays, size): frame(arrays, size) for arrays, size in ((1, 2000), (3, 1500), (2, 50_000))}


def outcome(q: SageQueue[Any], message: bytes, mode: dict[str, Any]) -> str:
    """Put it as it is; get it: a value, or an error that consumes it."""
    put_raw(q, message)
    try:
        q.get(**mode)
    except ValueError as error:
        assert str(error).startswith("Failed to deserialize item: ")
        del error
        assert q.empty()
        return "error"
    except MemoryError:  # a pickle that wants it all: it goes back
        assert get_raw(q) == message
        return "error"
    assert q.empty()
    return "value"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m[:1], "ends in its head"),
        (lambda m: m[:15], "ends in its head"),
        (lambda m: m[:16], "more buffers than it can hold"),
        (lambda m: m[:1] + b"\1" + m[2:], "unknown flags"),
        (lambda m: m[:4] + b"\xff\xff\xff\xff" + m[8:], "more buffers than it can hold"),
        (lambda m: m[:8] + b"\xff" * 8 + m[16:], "pickle is longer than itself"),
        (lambda m: m[:16] + b"\xff" * 8 + m[24:], "a buffer reaches beyond its end"),
        (lambda m: m[:-1], "a buffer reaches beyond its end"),
        (lambda m: m[:200], "a buffer reaches beyond its end"),
        (lambda m: m + b"x", "goes on behind its last buffer"),
    ],
)
@both_ways
def test_a_malformed_message_is_a_value_error_and_consumed(q: SageQueue[Any], change: Any, text: str, mode: dict[str, Any]) -> None:
    for message in FRAMES.values():
        put_raw(q, change(message))
        with pytest.raises(ValueError, match=f"^Failed to deserialize item: malformed message: .*{text}"):
            q.get(**mode)
        assert q.empty()


@pytest.mark.parametrize("message", [b"\2", b"\3" + bytes(62), b"\2\1" + bytes(100), b"\3" + bytes(14) + b"\1" + bytes(5000)])
@both_ways
def test_malformed_bytes_are_a_value_error_and_consumed(q: SageQueue[Any], message: bytes, mode: dict[str, Any]) -> None:
    put_raw(q, message)
    with pytest.raises(ValueError, match="^Failed to deserialize item: malformed message: .* bytes"):
        q.get(**mode)
    assert q.empty()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_message_is_an_error_or_a_value_and_never_a_crash(data: st.DataObject) -> None:
    message = bytearray(FRAMES[data.draw(st.sampled_from(sorted(FRAMES)))])
    head = 16 + 8 * message[4]
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, head - 1))
        message[where] = data.draw(st.sampled_from([0, 1, 2, 3, 127, 128, 255]) | st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(message)))
    message = message[:cut] + data.draw(st.sampled_from([b"", b"x", bytes(64)]))
    with SageQueue[Any]() as q:
        for mode in MODES:
            outcome(q, bytes(message), mode)
        assert nothing_is_held(q) and q.get_stats()["leased"] == 0


def test_a_message_written_over_while_it_is_read_is_an_error_or_a_value_and_never_a_crash(name: str, queue_directory: Any) -> None:
    """Somebody scribbles over the arena while views are made of what is there."""
    import os
    import random
    import threading

    chance = random.Random(1)
    message = FRAMES[2, 50_000]
    with SageQueue[Any](name, arena="256 KiB", capacity=4096) as q:
        put_raw(q, message)
        path = queue_directory / f"ringbuf.{name}"
        where = path.read_bytes().index(message)
        q.get()
        done = threading.Event()

        def scribble() -> None:
            with open(path, "r+b", buffering=0) as file:
                while not done.is_set():
                    os.pwrite(file.fileno(), chance.randbytes(1), where + chance.randrange(1, 32))

        thread = threading.Thread(target=scribble)
        thread.start()
        outcomes = {outcome(q, message, chance.choice(MODES)) for _ in range(1500)}
        done.set()
        thread.join()
        assert outcomes <= {"error", "value"}


def test_only_an_error_from_a_signal_handler_counts_as_one() -> None:
    def handler(number: int, frame: Any) -> None:
        raise TimeoutError("alarm")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeoutError) as caught:
            signal.raise_signal(signal.SIGALRM)
        assert came_from_signal_handler(caught.value)
        with pytest.raises(ZeroDivisionError) as other:
            1 / 0
        assert not came_from_signal_handler(other.value)
    finally:
        signal.signal(signal.SIGALRM, before)
