"""Plain data travels without pickle, and what comes out is what pickle would have given: types, order, bits, and what is there twice."""

from __future__ import annotations

import gc
import math
import pickle
import struct
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_queue import SageQueue, _native

PLAIN = 4  # the first byte of such a message
PICKLE = 0x80


def put_raw(q: SageQueue[Any], message: bytes) -> None:
    assert _native.put_bytes(q._handle, message) == 0


def get_raw(q: SageQueue[Any]) -> bytes:
    ffi, lib = _native.ffi, _native.lib
    size, buffer = ffi.new("size_t *"), ffi.new("char[]", 1 << 20)
    assert lib.ringbuf_get(q._handle, size, buffer, len(buffer), 0) == 0
    return bytes(ffi.buffer(buffer, size[0]))


@pytest.fixture
def q() -> Iterator[SageQueue[Any]]:
    with SageQueue[Any]() as q:
        yield q


def kind_of(q: SageQueue[Any], item: Any) -> int:
    """The first byte of the item's message."""
    q.put(item)
    return get_raw(q)[0]


def shape(item: Any, numbers: dict[int, int]) -> Any:
    """Everything there is to see of plain data: types, values to the bit, order, and which containers are the same object."""
    if isinstance(item, float):
        return float, struct.pack("<d", item)
    if not isinstance(item, (dict, list, tuple, bytearray)) or item == ():
        return type(item), item
    if id(item) in numbers:
        return "again", numbers[id(item)]
    numbers[id(item)] = len(numbers)
    if isinstance(item, bytearray):
        return bytearray, bytes(item)
    if isinstance(item, dict):
        return type(item), [(shape(key, numbers), shape(value, numbers)) for key, value in item.items()]
    return type(item), [shape(each, numbers) for each in item]


def assert_as_pickle_gives_it(q: SageQueue[Any], item: Any) -> None:
    expected = shape(pickle.loads(pickle.dumps(item, 5)), {})
    for mode in ({}, {"copy": False}):
        q.put(item)
        assert shape(q.get(**mode), {}) == expected
    q.put_many([item, item])
    assert [shape(got, {}) for got in q.get_many()] == [expected, expected]
    assert q.empty()


PLAIN_ITEMS = {
    "the seed's message": {"data": [1, 2, 3], "meta": "SAGE"},
    "nothing": None,
    "booleans and what equals them": [True, False, 1, 0, 1.0, 0.0],
    "ints at every edge": [
        edge + step for bits in (7, 8, 15, 16, 31, 32, 63) for edge in (1 << bits, -(1 << bits)) for step in (-1, 0, 1) if -(1 << 63) <= edge + step < 1 << 63
    ],
    "floats": [0.0, -0.0, math.inf, -math.inf, 5e-324, sys.float_info.max, 0.1],
    "nans": struct.unpack("<3d", struct.pack("<3Q", 0x7FF8000000000000, 0xFFF8000000000001, 0x7FFFFFFFFFFFFFFF)),
    "strs": ["", "a", "ä", "\0", "🙂", "\u07ff\u0800\uffff\U0010ffff", "x" * 63, "x" * 64, "é" * 31, "é" * 32, "y" * 300],
    "bytes": [b"", b"\0", b"x" * 63, b"x" * 64, b"x" * 255, b"x" * 256],
    "bytearrays": [bytearray(), bytearray(b"abc"), bytearray(1000)],
    "empty containers": [[], (), {}, ((),), [[]], {"": {}}],
    "containers at 15 and 16": [list(range(15)), list(range(16)), tuple(range(15)), tuple(range(16)), dict.fromkeys(range(15)), dict.fromkeys(range(16))],
    "keys of all kinds": {1: "int", "1": "str", 1.5: "float", b"1": "bytes", (1, ("a", None)): "tuple", None: 0, True + 1: [], -(1 << 63): {}},
    "order that is not sorted": {"z": 1, "a": 2, "m": 3, "b": 4},
    "the same str many times": [{"name": "value", "other": "value"}, {"name": "value", "ärger": "value"}],
    "a thousand of everything": [[i, i / 7, str(i), None, (i, {i: i})] for i in range(1000)],
}


@pytest.mark.parametrize("item", PLAIN_ITEMS.values(), ids=PLAIN_ITEMS)
def test_plain_data_goes_without_pickle_and_comes_out_as_pickle_would_give_it(q: SageQueue[Any], item: Any) -> None:
    item = pickle.loads(pickle.dumps(item))  # no constants, which are shared
    assert kind_of(q, item) == PLAIN
    assert_as_pickle_gives_it(q, item)


def test_large_plain_data_comes_out_whole_whether_it_lies_in_the_ring_or_in_the_arena(q: SageQueue[Any]) -> None:
    for size in (1000, 4093, 4094, 4095, 4096, 65_530, 65_536, 3_000_000):
        for item in ({"text": "x" * size}, [b"y" * size], {"array": bytearray(size)}, ["ü" * size], list(range(size // 8))):
            assert_as_pickle_gives_it(q, item)
    assert q.get_stats()["arena_used_bytes"] == 0


class Text(str):
    pass


class Number(IntEnum):
    ONE = 1


Point = namedtuple("Point", "x y")


def nested(depth: int) -> Any:
    item: Any = 7
    for level in range(depth):
        item = {"in": item} if level % 3 == 0 else [item] if level % 3 == 1 else (item,)
    return item


PICKLED = {
    "an int beyond 64 bits": 1 << 63,
    "a negative one": -(1 << 63) - 1,
    "a lone surrogate": "a\ud800",
    "a lone surrogate as a key": {"\udfff": 1},
    "a subclass of str": Text("x"),
    "a subclass of int": [Number.ONE],
    "a named tuple": Point(1, [2]),
    "an ordered dict": OrderedDict(a=1),
    "a default dict": {"a": defaultdict(list, b=[1])},
    "a set": [{1, 2}],
    "a complex number": 1j,
    "what is nested too deep": nested(33),
    "an odd thing at the end of much": [*range(5000), 1j],
}


@pytest.mark.parametrize("item", PICKLED.values(), ids=PICKLED)
def test_what_is_not_plain_is_pickled_as_a_whole(q: SageQueue[Any], item: Any) -> None:
    assert kind_of(q, item) == PICKLE
    q.put(item)
    got = q.get()
    assert got == item and type(got) is type(item)
    q.put_many([1, item, 2])
    assert q.get_many() == [1, item, 2]


def test_what_is_nested_32_deep_is_plain(q: SageQueue[Any]) -> None:
    item = nested(32)
    assert kind_of(q, item) == PLAIN
    assert_as_pickle_gives_it(q, item)


# ---- what is there twice ----


def aliased() -> dict[str, Any]:
    inner: list[Any] = [1]
    mapping: dict[str, Any] = {"a": inner}
    holder = (inner,)
    array = bytearray(b"abc")
    cycle: list[Any] = [1]
    cycle.append(cycle)
    ring: dict[str, Any] = {"name": "ring"}
    ring["next"] = [{"back": ring}]
    long_text, long_bytes = "long" * 20, b"long" * 20
    many = [[i] for i in range(60)]
    tuple_cycle: tuple[Any, ...] = ([],)
    tuple_cycle[0].append(tuple_cycle)
    return {
        "a list twice": [inner, inner],
        "a list at different depths": [inner, {"deep": ({"x": inner},)}],
        "a dict twice": (mapping, mapping),
        "a tuple with a list twice": [holder, holder],
        "a bytearray twice": [array, array],
        "itself": cycle,
        "itself, from further in": ring,
        "a tuple that is in itself": tuple_cycle,
        "a long str twice": [long_text, long_text],
        "long bytes twice": [long_bytes, long_bytes],
        "the 60th of 60 shared lists again": [*many, many[59]],
        "as key and value": {(1, "k"): 0, "v": holder, "w": holder},
        "many levels of two each": [twice(20)],
    }


def twice(levels: int) -> list[Any]:
    """2 ** levels paths to one object."""
    item: list[Any] = []
    for _ in range(levels):
        item = [item, item]
    return item


@pytest.mark.parametrize("what", aliased())
def test_what_is_there_twice_comes_out_as_one_object(q: SageQueue[Any], what: str) -> None:
    item = aliased()[what]
    assert kind_of(q, item) == PICKLE
    for _ in range(2):
        q.put(item)
        got = q.get()
        if "levels" in what:
            assert got[0][0] is got[0][1]
        else:
            assert shape(got, {}) == shape(item, {})
    q.put_many([item, item])
    one, other = q.get_many()
    assert one is not other


def test_containers_that_others_refer_to_as_well_are_plain_if_each_is_there_once(q: SageQueue[Any]) -> None:
    parts: list[Any] = [[1], {"a": 2}, (3, [4]), bytearray(b"5"), "six" * 50, b"seven" * 50]
    others = list(parts)
    assert kind_of(q, parts) == PLAIN and others
    assert_as_pickle_gives_it(q, parts)
    empty = ((), (), [()])
    assert kind_of(q, [empty]) == PLAIN
    assert_as_pickle_gives_it(q, [empty])


def test_what_comes_out_has_nothing_in_common_with_what_was_put_or_came_out_before(q: SageQueue[Any]) -> None:
    item = {"key": [1, {"inner": []}], "array": bytearray(b"x")}
    q.put(item)
    q.put(item)
    one, other = q.get(), q.get()
    one["key"][1]["inner"].append(1)
    one["array"].append(1)
    assert other == item == {"key": [1, {"inner": []}], "array": bytearray(b"x")}


def test_an_item_that_is_changed_after_put_comes_out_as_it_was(q: SageQueue[Any]) -> None:
    item = {"data": [1, 2, 3]}
    q.put(item)
    item["data"].append(4)
    assert q.get() == {"data": [1, 2, 3]}


def test_ten_thousand_different_keys_come_out_right_although_few_are_remembered(q: SageQueue[Any]) -> None:
    for start in range(0, 10_000, 500):
        item = {f"key{n}" * (n % 7 + 1): n for n in range(start, start + 500)} | {"ü" * (n % 11): n for n in range(11)}
        for _ in range(2):
            q.put(item)
            assert q.get() == item
    gc.collect()


def test_putting_and_getting_leaks_no_reference(q: SageQueue[Any]) -> None:
    item = {"data": [1000, 2000.5, "text" * 30, b"bytes" * 30], "deep": ({"list": [[]]},), "odd": bytearray(9)}
    refused = [*item.values(), 1j]
    q.put_many([item] * 10)
    q.get_many()
    parts = [item, refused, item["data"], item["data"][2], item["data"][3], item["deep"], item["odd"]]
    before = [sys.getrefcount(part) for part in parts]
    for _ in range(100):
        q.put(item)
        q.put(refused)
        q.put_many([item, refused])
        q.get()
        q.get()
        assert len(q.get_many()) == 2
    assert [sys.getrefcount(part) for part in parts] == before


# ---- any plain data ----


def plain() -> st.SearchStrategy[Any]:
    atoms = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-300, 300),
        st.floats(allow_nan=True),
        st.text(),
        st.text(st.characters(exclude_categories=())),  # surrogates, too
        st.binary(max_size=300),
    )
    keys = st.recursive(atoms, lambda inner: st.tuples(inner, inner), max_leaves=3)
    return st.recursive(
        atoms | st.builds(bytearray, st.binary(max_size=20)),
        lambda inner: st.lists(inner, max_size=20) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=6),
        max_leaves=40,
    )


@settings(max_examples=500, deadline=None)
@given(item=plain())
def test_any_plain_data_comes_out_as_pickle_would_give_it(item: Any) -> None:
    with SageQueue[Any]() as q:
        assert_as_pickle_gives_it(q, item)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_containers_that_share_parts_come_out_sharing_them(data: st.DataObject) -> None:
    made: list[Any] = [[]]
    for _ in range(data.draw(st.integers(1, 12))):
        parts = data.draw(st.lists(st.sampled_from(range(len(made))), max_size=3))
        make = data.draw(st.sampled_from([list, tuple, lambda inner: dict(enumerate(inner))]))
        made.append(make(made[part] for part in parts))
    for _ in range(data.draw(st.integers(0, 2))):  # and cycles
        made[0].append(made[data.draw(st.sampled_from(range(len(made))))])
    item = made[-1]
    with SageQueue[Any]() as q:
        assert_as_pickle_gives_it(q, item)


# ---- messages that are damaged ----


def valid_messages() -> list[bytes]:
    with SageQueue[Any]() as q:
        found = []
        for item in PLAIN_ITEMS.values():
            q.put(pickle.loads(pickle.dumps(item)))
            message = get_raw(q)
            if len(message) < 5000:
                found.append(message)
        return found


VALID = valid_messages()


def outcome(q: SageQueue[Any], message: bytes) -> str:
    put_raw(q, message)
    try:
        q.get()
    except ValueError as error:
        assert str(error).startswith("Failed to deserialize item: ")
        return "error"
    finally:
        assert q.empty()
    return "value"


def test_every_beginning_of_a_message_is_an_error(q: SageQueue[Any]) -> None:
    for message in VALID:
        for end in range(1, len(message)):
            assert outcome(q, message[:end]) == "error"
        assert outcome(q, message) == "value"
        assert outcome(q, message + b"\0") == "error"


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xBF, 0xCF, 0xDF, 0xEF, 0xF0, 0xF7, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF])
def test_any_byte_of_a_message_may_be_another_one(q: SageQueue[Any], byte: int) -> None:
    outcomes = set()
    for message in VALID:
        for where in range(1, len(message)):
            outcomes.add(outcome(q, message[:where] + bytes([byte]) + message[where + 1 :]))
    assert "error" in outcomes


@settings(max_examples=500, deadline=None)
@given(body=st.binary(max_size=300))
def test_any_bytes_are_an_error_or_a_value(body: bytes) -> None:
    with SageQueue[Any]() as q:
        outcome(q, bytes([PLAIN]) + body)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "without a value"),
        (b"\xfb\xff\xff\xff\xff", "more elements than it can hold"),
        (b"\xfc\xff\xff\xff\xff" + bytes(100), "more elements than it can hold"),
        (b"\xfd\x40\0\0\0" + bytes(100), "more elements than it can hold"),
        (b"\xfb\x64\0\0\0" * 2 + bytes(150), "more elements than it can hold"),  # each would fit by itself
        (b"\xf7\xff\xff\xff\xff" + bytes(100), "reaches beyond its end"),
        (b"\xf9\xff\xff\xff\x7f", "reaches beyond its end"),
        (b"\xfa\x01\0\0\0", "reaches beyond its end"),
        (b"\xf8\x01", "reaches beyond its end"),
        (b"\xf5\0\0", "reaches beyond its end"),
        (b"\xf6\0\0\0\0\0\0\0", "reaches beyond its end"),
        (b"\xfe", "of an unknown kind"),
        (b"\xff", "of an unknown kind"),
        (b"\xf0\xf0", "goes on behind its end"),
        (b"\xc1" * 33 + b"\xf0", "nested too deep"),
        (b"\xd1" * 100_000 + b"\xf0", "nested too deep"),
        (b"\x81\xff", "utf-8"),
        (b"\xe1\xc0\xf0", "unhashable"),
        (b"\xe1\x82\xc3\x28\xf0", "utf-8"),
    ],
)
def test_a_malformed_message_is_a_value_error_that_says_why_and_is_consumed(q: SageQueue[Any], body: bytes, text: str) -> None:
    for mode in ({}, {"copy": False}):
        put_raw(q, bytes([PLAIN]) + body)
        with pytest.raises(ValueError, match=f"^Failed to deserialize item: .*{text}"):
            q.get(**mode)
        assert q.empty()


def test_where_torch_is_loaded_plain_data_is_still_plain(run_python: Any) -> None:
    code = """
import sys, types
from sage_queue import SageQueue, _native
sys.modules["torch"] = types.ModuleType("torch")
q = SageQueue()
q.put({"data": [1, 2, 3], "meta": "SAGE"})
print(q.get(), "sage_queue._torch" in sys.modules)
q.put({1})
print(q.get(), "sage_queue._torch" in sys.modules or "torch" in sys.modules)
"""
    assert run_python(code).stdout == "{'data': [1, 2, 3], 'meta': 'SAGE'} False\n{1} True\n"
