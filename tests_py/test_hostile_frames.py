"""What comes from outside and is read in Python: messages that nobody wrote with SageQueue, references as JSON, and what a queue says of
itself.  It is an error of ours, or an object; never a crash, and never at the cost of the messages beside it.

test_plain.py and test_codec.py have the damaged messages of each format by themselves; tests_c/fuzz/ drives the C code that reads them.
"""

from __future__ import annotations

import json
import pickle
import queue
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sage_queue import QueueNotFound, SageQueue, SageQueueError, SageQueueRef, _native

GOOD = [{"name": "good", "values": [1, 2.5, None, b"x" * 300]}, b"y" * 5000, [bytearray(b"z" * 400), "ä" * 70], ("plain", -1)]
KEYS = {"name": "of the good ones"}  # so that what hostile messages leave in the table of names would be seen


def put_raw(q: SageQueue[Any], message: bytes) -> None:
    assert _native.put_bytes(q._handle, message) == 0


def json_values() -> st.SearchStrategy[Any]:
    edges = st.sampled_from([2**63, 2**64, -1, "a\0b", "\ud800"])
    atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | edges
    containers: Callable[[st.SearchStrategy[Any]], st.SearchStrategy[Any]]
    containers = lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)  # noqa: E731
    return st.recursive(atoms, containers, max_leaves=6)


# ---- messages ----


def sizes() -> st.SearchStrategy[int]:
    edges = [0, 1, 63, 64, 65, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1]
    return st.integers(0, 200) | st.sampled_from(edges)


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """Kind 01, with a pickle that asks for buffers, and numbers that need not agree with what is there."""
    views = draw(st.integers(0, 4))
    body = pickle.dumps([pickle.PickleBuffer(bytes([65 + n]) * 40) for n in range(views)], 5, buffer_callback=lambda buffer: False)
    lengths = draw(st.lists(st.just(40) | sizes(), max_size=5))
    count = draw(st.just(len(lengths)) | sizes()) % 2**32
    pickle_bytes = draw(st.just(len(body)) | sizes())
    message = struct.pack("<IIQ", draw(st.sampled_from([1, 1, 1, 257])), count, pickle_bytes)
    message += b"".join(struct.pack("<Q", length) for length in lengths) + body
    for n in range(draw(st.integers(0, 5))):
        message += bytes(-len(message) % draw(st.sampled_from([64, 1]))) + bytes([65 + n]) * 40
    return message


def contents() -> st.SearchStrategy[bytes]:
    """Kinds 02 and 03, whose head need not be zeros, or whole."""
    kinds = st.sampled_from([b"\2", b"\3"])
    heads = st.just(bytes(63)) | st.binary(max_size=70)
    return st.builds(lambda kind, head, content: kind + head + content, kinds, heads, st.binary(max_size=300))


def plain() -> st.SearchStrategy[bytes]:
    """Kind 04: tags that begin something, and whatever follows."""
    tags = st.sampled_from([bytes([tag]) for tag in (0x00, 0x84, 0xC2, 0xD2, 0xE1, *range(0xF0, 0x100))])
    numbers = sizes().map(lambda size: struct.pack("<Q", size)[:4])
    pieces = tags | st.binary(max_size=12) | numbers | st.sampled_from([b"\x84name", b"\x84values"])
    return st.lists(pieces, max_size=12).map(lambda made: b"\4" + b"".join(made))


def other() -> st.SearchStrategy[bytes]:
    """No kind of ours, and no pickle."""
    found = st.binary(max_size=100).filter(lambda message: not message or not 1 <= message[0] <= 4)
    return found.map(lambda message: message.replace(b"\x80", b"\x7f"))


def messages() -> st.SearchStrategy[bytes]:
    return framed() | contents() | plain() | other()


def get_one(q: SageQueue[Any]) -> Any:
    return q.get(block=False)


def get_view(q: SageQueue[Any]) -> Any:
    return q.get(block=False, copy=False)


def get_leased(q: SageQueue[Any]) -> Any:
    with q.lease(block=False) as leased:
        return leased.value


def get_batch(q: SageQueue[Any]) -> Any:
    got = q.get_many(1, timeout=0)
    if not got:
        raise queue.Empty
    return got[0]


def drained(q: SageQueue[Any], get: Callable[[SageQueue[Any]], Any]) -> list[Any]:
    """Everything, with an error where there was one, which consumes its message."""
    found: list[Any] = []
    while True:
        try:
            found.append(get(q))
        except queue.Empty:
            return found
        except ValueError as error:
            assert str(error).startswith("Failed to deserialize item: ")
            found.append(ValueError)


@pytest.mark.parametrize("get", [get_one, get_view, get_leased, get_batch])
@settings(max_examples=150, deadline=None)
@given(hostile=st.lists(messages(), min_size=1, max_size=4))
@example(hostile=[b"\4\xe1\x84name\xf0", b"\4\xe1\x84nama", b"\4\xe1\x84na\xff\xff\xf0"])
def test_hostile_messages_cost_the_good_ones_beside_them_nothing(get: Callable[[SageQueue[Any]], Any], hostile: list[bytes]) -> None:
    with SageQueue[Any](arena="256 KiB", capacity="64 KiB") as q:
        for message in hostile:
            q.put_many([*GOOD, KEYS])
            put_raw(q, message)
        q.put_many([*GOOD, KEYS])
        found = drained(q, get)
        each = len(GOOD) + 2
        assert len(found) == each * (len(hostile) + 1) - 1
        for start in range(0, len(found), each):
            assert found[start : start + each - 1] == [*GOOD, KEYS]
        del found
        assert q.empty() and q.get_stats()["leased"] == 0


@settings(max_examples=150, deadline=None)
@given(hostile=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_bytes_are_an_error_or_an_object_to_msgpack(hostile: list[bytes]) -> None:
    pytest.importorskip("msgspec")
    with SageQueue[Any](serializer="msgpack") as q:
        for message in hostile:
            put_raw(q, message)
            q.put(GOOD[0]["name"])  # type: ignore[index]
        found = drained(q, get_one)
        assert len(found) == 2 * len(hostile) and found[1::2] == ["good"] * len(hostile)


@settings(max_examples=100, deadline=None)
@given(hostile=st.lists(st.binary(max_size=5000), min_size=1, max_size=5))
def test_any_bytes_are_themselves_where_nothing_reads_them(hostile: list[bytes]) -> None:
    with SageQueue[Any](serializer="raw") as q:
        for message in hostile:
            put_raw(q, message)
        assert drained(q, get_one) == hostile


# ---- what a queue says of itself ----


@settings(max_examples=150, deadline=None)
@given(
    tag=st.binary(max_size=31) | st.sampled_from([b"", b"raw", b"pickle", b"msgpack"]),
    note=st.binary(max_size=511),
    dead_letter=st.binary(max_size=319) | st.sampled_from([b"", b"../dead", b"\xff\xfe", b"strange/", "d\u00e9j\u00e0".encode()]),
)
@example(tag=b"pickle", note=b'{"":' + b"[" * 500, dead_letter=b"")
@example(tag=b"pickle", note=b"", dead_letter=b"\xff" * 319)
def test_whatever_a_queue_says_of_itself_it_is_opened_or_refused(tag: bytes, note: bytes, dead_letter: bytes) -> None:
    ffi, lib = _native.ffi, _native.lib
    out, options = ffi.new("ringbuf **"), ffi.new("ringbuf_options *")
    lib.ringbuf_options_init(options)
    texts = [ffi.new("char[]", text) for text in (tag, note, dead_letter)]
    options.tag, options.note = texts[:2]
    if dead_letter.split(b"\0")[0]:
        options.dead_letter, options.max_attempts = texts[2], 3
    options.flags = lib.RINGBUF_AUTO_CLEANUP
    assert lib.ringbuf_create(out, b"strange", options) == 0
    try:
        with SageQueue[Any]("strange", mode="open") as q:
            assert q.get_reference().name == "strange" and repr(q)
            assert (q.max_attempts == 3) == (q.dead_letter is not None)
            q.put(1)
            assert q.get() == 1
    except ValueError as error:  # a serializer that is not there
        assert "serializer" in str(error)
    finally:
        lib.ringbuf_free(out[0])


# ---- references ----

VALID = SageQueueRef("a queue", "0123456789abcdef" * 2, maxsize=3, capacity=4096, directory="/nowhere", host="there").to_dict()


def try_reference(text: str | bytes) -> SageQueueRef | None:
    """A reference, which is what it says it is; or a ValueError, or a TypeError, with a message."""
    try:
        ref = SageQueueRef.from_json(text)
    except (ValueError, TypeError) as error:
        assert str(error)
        return None
    again = SageQueueRef.from_json(ref.to_json())
    assert again == ref and hash(again) == hash(ref) and pickle.loads(pickle.dumps(ref)) == ref
    repr(ref)
    return ref


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=300) | st.binary(max_size=300) | json_values().map(lambda value: json.dumps(value)))
@example(text="[" * 100_000)
@example(text='{"sage_queue_ref": 1, "name":' * 1000)
@example(text="1" * 5000)
@example(text=b"\xff\xfe\x00")
def test_any_text_is_a_reference_or_an_error_that_says_why_not(text: str | bytes) -> None:
    assert try_reference(text) is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_other_value_in_a_reference_is_taken_as_it_is_or_refused(data: st.DataObject) -> None:
    values: dict[str, Any] = {"sage_queue_ref": 1, **VALID}
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.sampled_from(sorted(values)) | st.text(max_size=5))
        values[field] = data.draw(json_values())
    if data.draw(st.booleans()):
        del values[data.draw(st.sampled_from(sorted(values)))]
    ref = try_reference(json.dumps(values))
    if ref is not None:
        del values["sage_queue_ref"]
        assert ref.to_dict() == {**SageQueueRef("a queue", VALID["id"]).to_dict(), **values}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_reference_with_other_characters_is_one_or_an_error(data: st.DataObject) -> None:
    text = SageQueueRef(**VALID).to_json()
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(text)))
        other = data.draw(st.text(max_size=3) | st.sampled_from(list('{}[]",:\\0-')))
        text = text[:where] + other + text[where + data.draw(st.integers(0, 3)) :]
    try_reference(text)


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(set(VALID) - {"boot_id", "host"})), json_values(), max_size=3), by_name=st.booleans())
def test_a_reference_from_outside_leads_to_a_queue_or_to_an_error_of_ours(changes: dict[str, Any], by_name: bool) -> None:
    """Never to another queue, and nothing is made that it does not say."""
    if by_name:
        base = SageQueueRef("a queue", 0, False).to_dict()
    else:
        base = {**VALID, "host": "", "boot_id": ""}
    ref = try_reference(json.dumps({"sage_queue_ref": 1, **base, **changes}))
    if ref is None or ref.create_if_not_exists:
        return
    try:
        with ref.get_queue() as q:
            raise AssertionError(f"there is none, and this is {q!r}")
    except (QueueNotFound, SageQueueError, ValueError, ImportError) as error:
        assert str(error)
