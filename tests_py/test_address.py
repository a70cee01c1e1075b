"""Names and sizes, and a reference as plain data: no queue is made here."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
from typing import Any

import pytest

from sage_queue import SageQueueRef
from sage_queue._address import full_name, human_bytes, parse_bytes, parse_maxsize, safe, shown

ID = "0123456789abcdef" * 2


def reference(**changes: Any) -> SageQueueRef:
    values: dict[str, Any] = {
        "name": "job/ü",
        "id": ID,
        "maxsize": 10,
        "capacity": 4096,
        "serializer": "raw",
        "directory": "/somewhere",
        "permissions": 0o660,
        "auto_cleanup": True,
        "creator_pid": 42,
        "host": "there",
        "boot_id": "boot",
    }
    return SageQueueRef(**{**values, **changes})


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("4 MiB", 4 << 20),
        ("4MiB", 4 << 20),
        (" 4  mib ", 4 << 20),
        ("1.5 KiB", 1536),
        ("64 GiB", 64 << 30),
        ("1 kB", 1000),
        ("2 MB", 2_000_000),
        ("3 GB", 3_000_000_000),
        ("17", 17),
        ("17 B", 17),
        (17, 17),
        (1 << 32, 1 << 32),
    ],
)
def test_a_size_is_a_number_of_bytes_or_words(words: Any, size: int) -> None:
    assert parse_bytes(words) == size


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (12, "12 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (4 << 20, "4 MiB"), (5 << 40, "5120 GiB")]
)
def test_a_size_reads_well(size: int, words: str) -> None:
    assert human_bytes(size) == words


def test_maxsize_takes_anything_that_counts_as_an_int() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    assert parse_maxsize(Index()) == 7  # type: ignore[arg-type]


def test_a_namespace_is_a_prefix() -> None:
    assert full_name("q") == "q"
    assert full_name("q", "job/7") == "job/7/q"


def test_a_reference_has_the_first_queues_names_too() -> None:
    ref = reference()
    assert (ref.name, ref.queue_name) == ("job/ü", "job/ü")
    assert (ref.size, ref.maxsize) == (10, 10)
    assert (ref.auto_cleanup, ref.creator_pid) == (True, 42)
    assert repr(ref) == "SageQueueRef(name='job/ü', size=10, creator_pid=42)"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_reference_survives_pickling(protocol: int) -> None:
    ref = reference()
    again = pickle.loads(pickle.dumps(ref, protocol))
    assert type(again) is SageQueueRef
    assert again == ref and hash(again) == hash(ref)
    assert again.to_dict() == ref.to_dict()


def test_a_reference_survives_json_and_copying() -> None:
    ref = reference()
    assert SageQueueRef.from_json(ref.to_json()) == ref
    assert SageQueueRef.from_json(ref.to_json().encode()) == ref
    assert SageQueueRef.from_dict(ref.to_dict()) == ref
    assert copy.copy(ref) == copy.deepcopy(ref) == ref


def test_a_reference_is_immutable_and_usable_as_a_key() -> None:
    ref = reference()
    with pytest.raises(AttributeError, match="cannot be changed"):
        ref.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot be changed"):
        ref.new = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="cannot be changed"):
        del ref.name
    assert {ref: 1}[reference()] == 1
    assert ref != reference(id="f" * 32) and ref != reference(maxsize=11) and ref != "job/ü"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "1",
        json.dumps({"sage_queue_ref": 2, "name": "a", "id": ID}),
        json.dumps({"sage_queue_ref": 1, "name": "a"}),
        json.dumps({"sage_queue_ref": 1, "name": "a", "id": ID, "surprise": 1}),
        "[" * 100_000,
    ],
)
def test_json_that_is_no_reference_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a reference to a queue"):
        SageQueueRef.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("name", "", "cannot be empty"),
        ("name", "a\0b", "zero character"),  # C would take it for "a"
        ("name", "\ud800", "UTF-8"),
        ("name", "ä" * 513, "1026 bytes long"),
        ("directory", "/dev/shm\0/elsewhere", "zero character"),
        ("maxsize", -1, "from 0 to"),
        ("maxsize", 1 << 64, "from 0 to"),
        ("capacity", 1 << 64, "from 0 to"),
        ("arena", -1, "from 0 to"),
        ("permissions", 0o1000, "from 0 to 511"),
        ("creator_pid", -1, "from 0 to"),
    ],
)
def test_what_no_queue_can_have_is_a_value_error(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        reference(**{field: value})
    with pytest.raises(ValueError, match=text):
        SageQueueRef.from_json(json.dumps({**json.loads(reference().to_json()), field: value}))


@pytest.mark.parametrize("bad", ["", "xyz", "0" * 31, "0" * 33, "G" * 32, "A" * 32])
def test_an_id_that_cannot_be_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        reference(id=bad)


@pytest.mark.parametrize("changes", [{"name": 1}, {"maxsize": "10"}, {"auto_cleanup": 1}, {"permissions": True}, {"id": b"0" * 32}])
def test_a_field_of_another_type_is_a_type_error(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="is of type"):
        reference(**changes)


# ---- what others have named, on a terminal ----


def _seen(text: str) -> str:
    """The name that is shown so: shown() the other way round."""

    def one(match: re.Match[str]) -> str:
        escape = match[0]
        if escape in ("\\n", "\\r", "\\t", "\\\\"):
            return {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[escape[1]]
        code = int(escape[2:], 16)
        return chr(code + 0xDC00) if escape[1] == "x" and code >= 0x80 else chr(code)

    return re.sub(r"\\(?:[nrt\\]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", one, text)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_no_two_names_are_shown_the_same_and_nothing_shown_moves_the_cursor(encoding: str) -> None:
    generator = random.Random(3)
    characters = [*map(chr, range(0x180)), *"\u202e\u200b\u2066\ufeff\u2028日本\U000e0001\U0001f600\ue000", *map(chr, range(0xDC80, 0xDD00))]
    for length in [1] * 2000 + [2, 5, 30] * 1000:
        name = "".join(generator.choices(characters, k=length))
        told = shown(name, encoding)
        assert told.isprintable() and told.strip() == told and told.encode(encoding)
        assert _seen(told) == name
        assert all(character.isprintable() or character == "\n" for character in safe(name, encoding))


def test_what_can_be_printed_is_shown_as_it_is() -> None:
    for name in ("jobs", "a b", "käse/日本", "[/x]", "100%", "עברית"):
        assert shown(name) == safe(name) == name
    assert safe("two\nlines\x1b[0m\\") == "two\nlines\\x1b[0m\\"
    assert shown("käse", "ascii") == "k\\u00e4se"
