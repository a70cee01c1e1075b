"""Serializers by themselves, and what they make of a queue."""

from __future__ import annotations

import pickle
import signal
from typing import Any

import pytest

from sage_queue import SageQueue
from sage_queue._codec import PROTOCOL, came_from_signal_handler, find_codec


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
