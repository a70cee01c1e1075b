"""Every way to fail, 1,000 times: no memory, object, descriptor, message or room is lost, and nothing is there that should not be.

A failure has a payload of 64 KiB, so that a leak of it shows as 62 MiB; what is smaller shows in the number of Python's own blocks.
At the end, an allocation fails at every place in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import pathlib
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sage_queue
from helpers import WITH_HELPERS, Run, clean, in_a_fork
from sage_queue import Empty, Full, MessageTooLarge, QueueClosed, QueueNoSpace, SageQueue, ShutDown, _native

numpy = pytest.importorskip("numpy")

TIMES = 1000
PAYLOAD_BYTES = 64 << 10
TEXT = "x" * PAYLOAD_BYTES
BYTES = TEXT.encode()
ARRAY = numpy.arange(PAYLOAD_BYTES, dtype="u1")
#: So large that it is copied into the arena in steps of its own.
LARGE = 5 * TEXT

Attempt = Callable[[], object]


# ---- what is measured ----


def private_bytes() -> int:
    """What this process alone has in memory; the queues' is shared."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's: what is free does not count
        trim(0)
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def costs_nothing(attempt: Attempt) -> None:
    """Fails if `attempt`, made many times, leaves anything, be it every other time."""
    for _ in range(TIMES // 10):  # what is made once is made now
        attempt()
    memory, blocks, open_files = private_bytes(), sys.getallocatedblocks(), descriptors()
    for _ in range(TIMES):
        attempt()
    grown, more_blocks = private_bytes() - memory, sys.getallocatedblocks() - blocks
    assert grown < TIMES * PAYLOAD_BYTES // 8, f"{grown >> 10} KiB more memory after {TIMES} times"
    assert more_blocks < TIMES // 2, f"{more_blocks} more blocks of Python's after {TIMES} times"
    assert descriptors() <= open_files


def fails(error: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object], text: str = "") -> None:
    try:
        call()
    except error as caught:
        assert text in str(caught)
    else:
        pytest.fail(f"no {error}")


# ---- what cannot be put, and what cannot be got ----


class Raises:
    """Cannot be pickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("boom")


_harmless = 0


def raise_it(error: type[BaseException], *payload: object) -> None:
    if not _harmless:
        raise error("boom")


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """What raises when it is read does not, meanwhile."""
    global _harmless
    _harmless = 1
    try:
        yield
    finally:
        _harmless = 0


class RaisesWhenRead:
    """Can be pickled, and not be unpickled."""

    def __init__(self, error: type[BaseException], *payload: object) -> None:
        self.made = (error, *payload)

    def __reduce__(self) -> Any:
        return raise_it, self.made


class LetsGo:
    """Releases a buffer while it is pickled."""

    def __init__(self, buffer: pickle.PickleBuffer) -> None:
        self.buffer = buffer

    def __reduce__(self) -> Any:
        self.buffer.release()
        return int, ()


class Mine:
    """A serializer whose two halves are given."""

    name = "mine"

    def __init__(self, dumps: Callable[[Any], Any] = bytes, loads: Callable[[Any], Any] = bytes) -> None:
        self.dumps = dumps
        self.loads = loads


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


def raises(error: type[BaseException]) -> Callable[[Any], Any]:
    def function(argument: Any) -> Any:
        raise error("boom")

    return function


def with_a_buffer_that_is_released_meanwhile() -> Any:
    buffers = [pickle.PickleBuffer(bytearray(PAYLOAD_BYTES)) for _ in range(3)]
    return [*buffers, LetsGo(buffers[1])]


def nested(depth: int) -> Any:
    item: Any = TEXT
    for _ in range(depth):
        item = [item]
    return item


#: Half of what a payload is can be in it at once.
NARROW: dict[str, Any] = {"capacity": PAYLOAD_BYTES, "arena": 0}


def fill(q: SageQueue[Any]) -> object:
    for _ in range(max(q.maxsize, 1)):
        q.put(b"first")
    return None


def fill_arena(q: SageQueue[Any]) -> object:
    q.put(b"x" * (q.arena - 128))
    return q.lease()  # as long as it is held


def shut_down(q: SageQueue[Any]) -> object:
    q.shutdown()
    return None


def close(q: SageQueue[Any]) -> object:
    q.close()
    return None


def nothing(q: SageQueue[Any]) -> object:
    return None


#: name: (options of the queue, what is done with it first, what makes the item, the error, its text)
BAD_ITEMS: dict[str, tuple[dict[str, Any], Callable[[SageQueue[Any]], object], Callable[[], Any], type[BaseException], str]] = {
    "a lambda behind much plain data": ({}, nothing, lambda: [TEXT, lambda: 0], ValueError, "Failed to serialize"),
    "a lambda behind some plain data": ({}, nothing, lambda: ["x" * 3000, lambda: 0], ValueError, "Failed to serialize"),
    "a lambda behind an array": ({}, nothing, lambda: [TEXT, ARRAY.copy(), lambda: 0], ValueError, "Failed to serialize"),
    "an object that raises": ({}, nothing, lambda: [TEXT, Raises(RuntimeError)], ValueError, "Failed to serialize item: boom"),
    "an object that raises an error without a text": ({}, nothing, lambda: [TEXT, Raises(WithoutText)], ValueError, "WithoutText"),
    "Ctrl-C while it is pickled": ({}, nothing, lambda: [TEXT, Raises(KeyboardInterrupt)], KeyboardInterrupt, "boom"),
    "Ctrl-C behind an array": ({}, nothing, lambda: [TEXT, ARRAY.copy(), Raises(KeyboardInterrupt)], KeyboardInterrupt, "boom"),
    "no memory while it is pickled": ({}, nothing, lambda: [TEXT, Raises(MemoryError)], MemoryError, "boom"),
    "a buffer that is released meanwhile": ({}, nothing, with_a_buffer_that_is_released_meanwhile, ValueError, "released"),
    "a buffer with gaps": (
        {},
        nothing,
        lambda: [TEXT, ARRAY.copy(), pickle.PickleBuffer(ARRAY[::2])],  # of a memoryview, it can crash CPython 3.11 itself
        ValueError,
        "contiguous",
    ),
    "lists in lists without end": ({}, nothing, lambda: nested(3000), ValueError, "recursion"),
    "raw, a str": ({"serializer": "raw"}, nothing, lambda: TEXT, ValueError, "takes bytes"),
    "raw, an array of objects": ({"serializer": "raw"}, nothing, lambda: numpy.full(8192, None), ValueError, "an array of Python objects"),
    "raw, a memoryview that was released": ({"serializer": "raw"}, nothing, lambda: released(), ValueError, "released"),
    "raw, with gaps, and too large": (
        {**NARROW, "serializer": "raw"},
        nothing,
        lambda: numpy.zeros(2 * PAYLOAD_BYTES, "u1")[::2],
        MessageTooLarge,
        "65536 bytes",
    ),
    "a serializer that raises": ({"serializer": Mine(raises(RuntimeError))}, nothing, lambda: TEXT, ValueError, "boom"),
    "a serializer and Ctrl-C": ({"serializer": Mine(raises(KeyboardInterrupt))}, nothing, lambda: TEXT, KeyboardInterrupt, "boom"),
    "a serializer that gives a str": ({"serializer": Mine(lambda item: 2 * item)}, nothing, lambda: TEXT, ValueError, "gives bytes, not str"),
    "a serializer that gives None": ({"serializer": Mine(lambda item: None)}, nothing, lambda: TEXT, ValueError, "not NoneType"),
    "a serializer that gives too much": ({**NARROW, "serializer": Mine()}, nothing, lambda: BYTES, MessageTooLarge, "65536 bytes"),
    "a serializer that gives a bytearray, too large": (
        {**NARROW, "serializer": Mine(bytearray)},
        nothing,
        lambda: BYTES,
        MessageTooLarge,
        "65536 bytes",
    ),
    "plain data, too large": (NARROW, nothing, lambda: [TEXT], MessageTooLarge, "bytes"),
    "bytes, too large": (NARROW, nothing, lambda: BYTES, MessageTooLarge, "bytes"),
    "a bytearray, too large": (NARROW, nothing, lambda: bytearray(PAYLOAD_BYTES), MessageTooLarge, "bytes"),
    "an array, too large": (NARROW, nothing, lambda: ARRAY.copy(), MessageTooLarge, "bytes"),
    "an array, larger than the arena": ({"arena": 1}, nothing, lambda: numpy.zeros(8 * PAYLOAD_BYTES, "u1"), MessageTooLarge, "bytes"),
    "plain data, larger than the arena": ({"arena": 1}, nothing, lambda: [2 * LARGE], MessageTooLarge, "bytes"),
    "a pickle, too large": (NARROW, nothing, lambda: {1.5j: TEXT}, MessageTooLarge, "bytes"),
    "plain data, and it is full": ({"maxsize": 8}, fill, lambda: [TEXT], Full, ""),
    "bytes, and it is full": ({"maxsize": 8}, fill, lambda: BYTES, Full, ""),
    "an array, and it is full": ({"maxsize": 8}, fill, lambda: ARRAY.copy(), Full, ""),
    "a pickle, and it is full": ({"maxsize": 8}, fill, lambda: {1.5j: TEXT}, Full, ""),
    "much plain data, and it is full": ({"maxsize": 8}, fill, lambda: [LARGE], Full, ""),
    "much plain data, and the arena is full": ({"arena": "1 MiB"}, fill_arena, lambda: [LARGE], Full, ""),
    "an array, and the arena is full": ({"arena": "1 MiB"}, fill_arena, lambda: numpy.zeros(1 << 19, "u1"), Full, ""),
    "an array, and it is shut down": ({}, shut_down, lambda: [TEXT, ARRAY.copy()], ShutDown, ""),
    "plain data, and it is shut down": ({}, shut_down, lambda: [TEXT], ShutDown, ""),
    "an array, and it is closed": ({}, close, lambda: [TEXT, ARRAY.copy()], QueueClosed, ""),
    "plain data, and it is closed": ({}, close, lambda: [LARGE], QueueClosed, ""),
}


def released() -> memoryview:
    view = memoryview(bytearray(PAYLOAD_BYTES))
    view.release()
    return view


def a_few(item: Any, q: SageQueue[Any]) -> list[Any]:
    """A batch with this item in the middle, between others of each kind that this queue takes."""
    if q.serializer == "raw" or q.serializer == "mine":
        return [b"x", b"x" * 5000, item, b"x"] if q.serializer == "raw" else [item, item]
    return [1, [2.5, "x" * 5000], b"x" * 300, numpy.zeros(2000), {1j: 2}, item, 3]


PUTS: dict[str, Callable[[SageQueue[Any], Any], object]] = {
    "put": lambda q, item: q.put(item, timeout=0),
    "put_many": lambda q, item: q.put_many(a_few(item, q), timeout=0),
}


@pytest.mark.parametrize("how", PUTS)
@pytest.mark.parametrize("what", BAD_ITEMS)
def test_a_put_that_fails_costs_nothing(what: str, how: str) -> None:
    options, prepare, make, error, text = BAD_ITEMS[what]
    put = PUTS[how]
    q = SageQueue[Any](**options)
    held = prepare(q)
    items = None if q.is_closed() else q.qsize()
    costs_nothing(lambda: fails(error, lambda: put(q, make()), text))
    if items is not None:
        assert q.qsize() == items
        items += held is not None  # a lease, which gives back
        del held
        assert len(q.drain()) == items
        assert q.empty() and clean(q)
    q.close()


@pytest.mark.parametrize(
    "what",
    [
        "a lambda behind an array",
        "Ctrl-C behind an array",
        "an array, too large",
        "plain data, and it is full",
        "much plain data, and the arena is full",
        "an array, and it is shut down",
        "plain data, and it is closed",
    ],
)
def test_a_put_of_a_task_that_fails_costs_nothing(what: str) -> None:
    options, prepare, make, error, text = BAD_ITEMS[what]
    q = SageQueue[Any](**options)
    held = prepare(q)
    loop = asyncio.new_event_loop()
    timeout = 0.0002 if error is Full else None
    attempts = [lambda: q.put_async(make(), timeout=timeout), lambda: q.put_many_async([make(), make()], timeout=timeout)]
    try:
        for attempt in attempts:
            costs_nothing(lambda: fails(error, lambda: loop.run_until_complete(attempt()), text if attempt is attempts[0] else ""))
    finally:
        loop.close()
    del held
    q.close()


@pytest.mark.parametrize("items", [None, 7, raises(RuntimeError)], ids=["None", "an int", "a generator that raises"])
def test_a_batch_that_is_none_costs_nothing(items: Any) -> None:
    def batch() -> Any:
        yield TEXT + "y"
        yield ARRAY.copy()
        items(1)

    with SageQueue[Any]() as q:
        costs_nothing(lambda: fails((RuntimeError, TypeError), lambda: q.put_many(batch() if callable(items) else items)))
        assert q.empty()


class PutsInto:
    """Puts something into the queue that it is being put into, or gets from it, while it is pickled."""

    queue: SageQueue[Any]

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        self.call()
        return str, (TEXT,)


@pytest.mark.parametrize("how", ["put", "put_many"])
def test_a_put_inside_of_a_put_that_fails_costs_nothing(how: str) -> None:
    with SageQueue[Any]() as q:
        inner: Any = {"put": lambda: q.put([TEXT, ARRAY, lambda: 0]), "put_many": lambda: q.put_many([[ARRAY], lambda: 0])}[how]
        outer: Any = {"put": q.put, "put_many": lambda item: q.put_many([TEXT, item, ARRAY])}[how]
        costs_nothing(lambda: fails(ValueError, lambda: outer([TEXT, ARRAY, PutsInto(inner)])))
        assert q.empty()
        good = PutsInto(lambda: q.put([TEXT, ARRAY]))
        q.put([good, ARRAY])
        assert q.qsize() == 2
        first, second = q.get(), q.get()
        assert first[0] == second[0] == TEXT and (first[1] == ARRAY).all() and (second[1] == ARRAY).all()


NESTED = """
import sys
from sage_queue import SageQueue
q = SageQueue()
class Puts:
    def __reduce__(self):
        put(Puts())
        return int, ()
class Gets:
    def __reduce__(self):
        return get, ()
def put(item):
    q.put_many([item]) if sys.argv[1] == "batches" else q.put(item)
def get():
    return q.get_many(1, block=False) if sys.argv[1] == "batches" else q.get(block=False)
try:
    put(Puts())
    raise SystemExit("no end")
except ValueError as error:
    assert "recursion" in str(error), error
assert q.empty()
q.put_many([Gets() for _ in range(3000)])
try:
    get()
    raise SystemExit("no end")
except (ValueError, RecursionError) as error:
    assert "recursion" in str(error), error
print("alive", q.qsize() < 3000)
"""


@pytest.mark.parametrize("what", ["items", "batches"])
def test_calls_inside_of_calls_end_with_a_recursion_error_and_not_with_the_stack(what: str, run_python: Run) -> None:
    assert run_python(NESTED, what).stdout == "alive True\n"


# ---- gets ----


def frame(count: int, pickle_bytes: int, *sizes: int, flags: int = 0, rest: bytes = b"") -> bytes:
    """A message of kind 01, whose numbers may be wrong."""
    numbers = b"".join(size.to_bytes(8, "little") for size in sizes)
    return b"\x01\0\0" + bytes([flags]) + count.to_bytes(4, "little") + pickle_bytes.to_bytes(8, "little") + numbers + rest


BODY = pickle.dumps([TEXT], 5)
PLAIN = bytes([0xFB, 100, 0, 0, 0]) + b"\xf7" + PAYLOAD_BYTES.to_bytes(4, "little") + BYTES
MALFORMED = {
    "nothing": b"",
    "no pickle": b"\x7f" + BYTES,
    "a pickle cut short": BODY[:-10],
    "a frame cut in its head": frame(1, 1)[:15],
    "a frame with unknown flags": frame(0, len(BODY), flags=1, rest=BODY),
    "a frame with too many buffers": frame(1 << 30, len(BODY), rest=BODY),
    "a frame whose pickle is longer than itself": frame(0, 1 << 40, rest=BODY),
    "a frame whose last buffer reaches beyond its end": frame(3, len(BODY), 8, 8, 1 << 62, rest=BODY + bytes(200)),
    "a frame that goes on behind its end": frame(0, len(BODY), rest=BODY + b"x"),
    "a frame with a pickle cut short": frame(1, len(BODY) - 10, 64, rest=BODY[:-10] + bytes(-(24 + len(BODY) - 10) % 64) + bytes(64)),
    "bytes with a wrong head": b"\x02" + b"\x01" * 63 + BYTES,
    "a bytearray with a wrong head": b"\x03" + b"\x01" * 63 + BYTES,
    "plain data cut short": b"\x04" + PLAIN,
    "plain data of an unknown kind": b"\x04" + b"\xd2" + PLAIN[5:] + b"\xff",
    "plain data that goes on": b"\x04" + PLAIN[5:] + b"x",
    "a dict cut in its second value": b"\x04" + b"\xe2\x81a" + PLAIN[5:] + b"\x81b\xf7\xff\xff\0\0",
    "a dict with a key that has no hash": b"\x04" + b"\xe1\xc0" + PLAIN[5:],
    "a str that is not UTF-8": b"\x04" + b"\xd2" + PLAIN[5:] + b"\x82\xff\xff",
}
UNREADABLE: dict[str, tuple[Any, type[BaseException], str]] = {
    "an object that raises": (RaisesWhenRead(RuntimeError, TEXT), ValueError, "Failed to deserialize item: boom"),
    "an object that raises, beside an array": (RaisesWhenRead(RuntimeError, ARRAY, bytearray(300)), ValueError, "boom"),
    "an object that raises an error without a text": (RaisesWhenRead(WithoutText, ARRAY), ValueError, "WithoutText"),
    "Ctrl-C": (RaisesWhenRead(KeyboardInterrupt, TEXT), KeyboardInterrupt, "boom"),
    "Ctrl-C, beside an array": (RaisesWhenRead(KeyboardInterrupt, ARRAY), KeyboardInterrupt, "boom"),
    "no memory": (RaisesWhenRead(MemoryError, TEXT), MemoryError, "boom"),
    "no memory, beside an array": (RaisesWhenRead(MemoryError, ARRAY, 5 * ARRAY), MemoryError, "boom"),
}

GETS: dict[str, Callable[[SageQueue[Any]], object]] = {
    "get": lambda q: q.get(timeout=0),
    "get in place": lambda q: q.get(timeout=0, copy=False),
    "get in place, writable": lambda q: q.get(timeout=0, copy=False, writable=True),
    "lease": lambda q: q.lease(timeout=0),
    "lease in place": lambda q: q.lease(timeout=0, copy=False),
    "get_many": lambda q: q.get_many(block=False),
    "get_nowait_batch": lambda q: q.get_nowait_batch(1),
    "drain": lambda q: q.drain(),
    "iteration": lambda q: next(iter(q)),
}


@pytest.mark.parametrize("how", ["get", "get in place", "get_many"])
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_message_costs_nothing_and_is_gone(what: str, how: str) -> None:
    message, get = MALFORMED[what], GETS[how]
    with SageQueue[Any]() as q:

        def attempt() -> None:
            assert _native.put_bytes(q._handle, message) == 0
            fails(ValueError, lambda: get(q), "Failed to deserialize item")

        costs_nothing(attempt)
        assert q.empty() and clean(q)


@pytest.mark.parametrize("how", ["get", "get in place, writable", "lease", "lease in place", "get_nowait_batch"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_an_item_that_cannot_be_unpickled_costs_nothing(what: str, how: str) -> None:
    """One that is at fault itself is gone, and one that is not goes back."""
    item, error, text = UNREADABLE[what]
    get = GETS[how]
    with SageQueue[Any]() as q:
        q.put(item)

        def attempt() -> None:
            fails(error, lambda: get(q), text)
            assert q.qsize() == (error is not ValueError)
            if error is ValueError:
                q.put(item)

        costs_nothing(attempt)
        assert q.qsize() == 1
        fails(error, q.get)


@pytest.mark.parametrize("how", ["get_many", "get_nowait_batch"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_item_in_the_middle_of_a_batch_costs_nothing(what: str, how: str) -> None:
    item, error, text = UNREADABLE[what]
    with SageQueue[Any]() as q:

        def attempt() -> None:
            q.put_many([TEXT + "y", ARRAY, item, b"x" * 300, TEXT + "y"])
            got = []
            with contextlib.suppress(error):
                while True:
                    got += q.get_many(block=False) if how == "get_many" else q.get_nowait_batch(5)
            assert len(got) + q.qsize() == 5 - (error is ValueError)
            with harmless():
                assert len(got + q.drain()) == 5 - (error is ValueError)

        costs_nothing(attempt)
        assert q.empty() and clean(q)


@pytest.mark.parametrize("how", ["get", "get in place", "lease", "drain", "iteration"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_serializer_that_cannot_read_costs_nothing(error: type[BaseException], how: str) -> None:
    get = GETS[how]
    with SageQueue[Any](serializer=Mine(bytes, raises(error))) as q:

        def attempt() -> None:
            if q.empty():
                q.put(BYTES)
            fails(ValueError if error is RuntimeError else error, lambda: get(q), "boom")

        costs_nothing(attempt)
        assert q.qsize() == (error is not RuntimeError)


@pytest.mark.parametrize("how", [how for how in GETS if how != "drain"])
@pytest.mark.parametrize("what", ["empty", "shut down", "closed"])
def test_a_get_of_nothing_costs_nothing(what: str, how: str) -> None:
    get = GETS[how]
    if what == "empty" and how == "iteration":
        pytest.skip("it would wait")
    q = SageQueue[Any]()
    {"empty": nothing, "shut down": shut_down, "closed": close}[what](q)
    error = {"empty": Empty, "shut down": StopIteration if how == "iteration" else ShutDown, "closed": QueueClosed}[what]
    costs_nothing(lambda: fails(error, lambda: get(q)))
    q.close()


@pytest.mark.parametrize("how", [how for how in GETS if how != "iteration"])
def test_a_queue_that_is_closed_while_its_message_is_read_costs_nothing(how: str, name: str) -> None:
    get = GETS[how]
    queues: list[SageQueue[Any]] = []

    def loads(buffer: Any) -> Any:
        for q in queues:
            q.close()
        return bytes(buffer)

    mine = Mine(bytes, loads)
    with SageQueue[Any](name, serializer=mine) as keeper:
        keeper.put(BYTES)

        def attempt() -> None:
            queues[:] = [SageQueue[Any](name, serializer=mine)]
            fails(QueueClosed, lambda: get(queues[0]).ack())  # type: ignore[attr-defined]  # of a lease: it comes to nothing then

        costs_nothing(attempt)
        queues.clear()
        assert keeper.get() == BYTES
        assert clean(keeper)


def test_gets_of_tasks_that_fail_cost_nothing() -> None:
    with SageQueue[Any]() as q:

        async def attempts() -> None:
            def put(message: bytes) -> None:
                assert _native.put_bytes(q._handle, message) == 0

            async def late() -> None:
                await asyncio.sleep(0)
                put(b"\x7f" + BYTES)

            for get in (q.get_async, lambda **how: q.get_many_async(**how)):
                with pytest.raises(Empty):
                    await get(timeout=0.0001)
                put(b"\x7f" + BYTES)
                with pytest.raises(ValueError, match="Failed to deserialize"):
                    await get()
                with pytest.raises(ValueError, match="Failed to deserialize"):
                    await asyncio.gather(get(), late())
                waiting = asyncio.ensure_future(get())
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

        loop = asyncio.new_event_loop()
        costs_nothing(lambda: loop.run_until_complete(attempts()))
        loop.close()
        assert q.empty() and clean(q)


# ---- waits that a signal handler ends ----


class Alarm(Exception):
    pass


@contextlib.contextmanager
def alarms() -> Iterator[Callable[[Callable[[], object]], None]]:
    """What makes a call that is interrupted by a handler that raises."""

    def ring(number: int, frame: Any) -> None:
        raise Alarm

    def interrupted(call: Callable[[], object]) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003)
            call()
        except Alarm:
            return
        pytest.fail("it did not wait")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


WAITS: dict[str, tuple[dict[str, Any], Callable[[SageQueue[Any]], object], Callable[[SageQueue[Any]], object]]] = {
    "put": ({"maxsize": 1}, fill, lambda q: q.put([TEXT, ARRAY])),
    "put of much plain data": ({"maxsize": 1}, fill, lambda q: q.put([LARGE])),
    "put where the arena is full": ({"arena": "1 MiB"}, fill_arena, lambda q: q.put([LARGE, ARRAY])),
    "put_many": ({"maxsize": 1}, fill, lambda q: q.put_many([TEXT, [ARRAY]])),
    "put_many with a timeout": ({"maxsize": 2}, fill, lambda q: q.put_many([TEXT, [ARRAY]], timeout=60)),
    "get": ({}, nothing, lambda q: q.get()),
    "get in place": ({}, nothing, lambda q: q.get(copy=False)),
    "get_many": ({}, nothing, lambda q: q.get_many()),
    "lease": ({}, nothing, lambda q: q.lease()),
    "iteration": ({}, nothing, lambda q: next(iter(q))),
    "reserve": ({"arena": "1 MiB"}, fill_arena, lambda q: q.reserve(1 << 19)),
    "reserve_array": ({"arena": "1 MiB"}, fill_arena, lambda q: q.reserve_array(1 << 19, "u1")),
    "commit": ({"maxsize": 1}, fill, lambda q: q.reserve(PAYLOAD_BYTES).commit()),
    "join": ({}, fill, lambda q: q.join()),
}


@pytest.mark.parametrize("what", WAITS)
def test_a_wait_that_a_signal_handler_ends_costs_nothing(what: str) -> None:
    options, prepare, call = WAITS[what]
    with SageQueue[Any](**options) as q, alarms() as interrupted:
        held = prepare(q)
        items = q.qsize()
        costs_nothing(lambda: interrupted(lambda: call(q)))
        assert q.qsize() == items
        del held
        q.drain()
        assert q.empty() and clean(q)


# ---- leases and reservations ----


def put_text(q: SageQueue[Any]) -> object:
    q.put(TEXT)
    return None


def _with(manager: Any, error: type[Exception]) -> None:
    with manager:
        raise error("boom")


def _commit_twice(q: SageQueue[Any]) -> None:
    reservation = q.reserve(PAYLOAD_BYTES)
    reservation.commit()
    q.get()
    reservation.commit()


HELD: dict[str, tuple[dict[str, Any], Callable[[SageQueue[Any]], object], Callable[[SageQueue[Any]], object], Any]] = {
    "a lease that ends with an error": ({}, fill, lambda q: _with(q.lease(), RuntimeError), RuntimeError),
    "a lease in place that ends with an error": ({}, put_text, lambda q: _with(q.lease(copy=False), RuntimeError), RuntimeError),
    "a lease that is dropped": ({}, fill, lambda q: q.lease().missing, AttributeError),
    "a lease that ends twice": ({}, fill, lambda q: [lease.nack() for lease in 2 * [q.lease()]], ValueError),
    "a reservation that ends with an error": ({}, nothing, lambda q: _with(q.reserve(PAYLOAD_BYTES), RuntimeError), RuntimeError),
    "an array that ends with an error": ({}, nothing, lambda q: _with(q.reserve_array(8192), RuntimeError), RuntimeError),
    "a reservation that is dropped": ({}, nothing, lambda q: q.reserve(PAYLOAD_BYTES).missing, AttributeError),
    "a reservation that is committed twice": ({}, nothing, _commit_twice, ValueError),
    "a reservation of nothing": ({}, nothing, lambda q: q.reserve(-1), ValueError),
    "a reservation larger than the arena": ({"arena": "1 MiB"}, nothing, lambda q: q.reserve(1 << 21), MessageTooLarge),
    "a reservation larger than anything": ({}, nothing, lambda q: q.reserve(sys.maxsize - 10), (MessageTooLarge, OverflowError)),
    "a reservation where the arena is full": ({"arena": "1 MiB"}, fill_arena, lambda q: q.reserve(1 << 19, timeout=0), Full),
    "a reservation where none can be": ({"arena": 0}, nothing, lambda q: q.reserve(1), ValueError),
    "a commit of one too many": ({"maxsize": 1}, fill, lambda q: q.reserve(PAYLOAD_BYTES, timeout=0).commit(), Full),
    "an array of too many dimensions": ({}, nothing, lambda q: q.reserve_array((1,) * 100, "u1"), ValueError),
    "an array of objects": ({}, nothing, lambda q: q.reserve_array(100, object), ValueError),
    "an array of a shape that is none": ({}, nothing, lambda q: q.reserve_array((10, -1)), ValueError),
    "a reservation and a shutdown": ({}, shut_down, lambda q: q.reserve(PAYLOAD_BYTES).commit(), ShutDown),
    "a reservation of a closed queue": ({}, close, lambda q: q.reserve(PAYLOAD_BYTES), QueueClosed),
}


@pytest.mark.parametrize("what", HELD)
def test_what_is_held_and_fails_costs_nothing(what: str) -> None:
    options, prepare, call, error = HELD[what]
    q = SageQueue[Any](**options)
    held = prepare(q)
    items = None if q.is_closed() else q.qsize()
    costs_nothing(lambda: fails(error, lambda: call(q)))
    if items is not None:
        assert q.qsize() == items
        del held
        q.drain()
        assert q.empty() and clean(q)
    q.close()


def test_an_array_that_cannot_be_made_gives_its_room_up_at_once_and_not_with_the_exception() -> None:
    with SageQueue[Any]() as q:
        with pytest.raises(ValueError) as caught:
            q.reserve_array((1,) * 100, "u1")
        assert caught.value.__traceback__ is not None
        assert clean(q)


# ---- making and finding queues ----

MAKING: dict[str, tuple[Callable[[str], object], type[BaseException]]] = {
    "one that is there": (lambda name: SageQueue(name, mode="create"), sage_queue.QueueExists),
    "one that is in use": (lambda name: SageQueue(name, mode="fresh"), sage_queue.QueueBusy),
    "one that is not there": (lambda name: SageQueue(name + "-other", mode="open"), sage_queue.QueueNotFound),
    "one of another serializer": (lambda name: SageQueue(name, serializer="raw"), ValueError),
    "one of other attempts": (lambda name: SageQueue(name, max_attempts=3, dead_letter="dead"), ValueError),
    "a serializer that is none": (lambda name: SageQueue(name, serializer=object()), ValueError),  # type: ignore[arg-type]
    "a size that is none": (lambda name: SageQueue(name, capacity="much"), ValueError),
    "a name that is none": (lambda name: SageQueue(name + "\0"), ValueError),
    "a reference to one that is gone": (lambda name: sage_queue.SageQueueRef(name, "1" * 32).get_queue(), sage_queue.QueueNotFound),
}


@pytest.mark.parametrize("what", MAKING)
def test_a_queue_that_cannot_be_made_costs_nothing(what: str, name: str) -> None:
    make, error = MAKING[what]
    with SageQueue[Any](name) as q:
        costs_nothing(lambda: fails(error, lambda: make(name)))
        assert q.get_stats()["participants"] == 1


def test_a_queue_whose_serializer_knows_it_goes_with_it() -> None:
    def make() -> None:
        mine = Mine()
        q = SageQueue[Any](serializer=mine)
        mine.dumps = lambda item: bytes(item) + (q.name and b"")
        q.put(BYTES)
        fails(ValueError, lambda: q.put([None]))
        del q, mine
        gc.collect(0)

    costs_nothing(make)


# ---- a file system without room ----


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_call_that_finds_no_room_in_the_file_system_costs_nothing(small_tmpfs: Callable[[str], pathlib.Path]) -> None:
    directory = small_tmpfs("1m")
    with SageQueue[Any](capacity="64 KiB", arena="512 KiB") as q:
        filler = directory / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        calls: list[Callable[[], object]] = [
            lambda: q.put([TEXT], block=False),
            lambda: q.put(BYTES, block=False),
            lambda: q.put(ARRAY, block=False),
            lambda: q.put([LARGE], block=False),
            lambda: q.put_many([[TEXT], ARRAY, BYTES], block=False),
            lambda: q.reserve(PAYLOAD_BYTES, timeout=0),
            lambda: q.reserve_array(8192, timeout=0),
            lambda: SageQueue(capacity="64 KiB", arena="512 KiB"),
        ]
        for call in calls:
            costs_nothing(lambda: fails(QueueNoSpace, call))
        assert q.empty()
        filler.unlink()
        q.put([TEXT])
        assert q.get() == [TEXT]
        assert clean(q)


# ---- every allocation fails in turn ----

NO_MEMORY = """
import gc, sys
import _testcapi
import numpy
from sage_queue import SageQueue
from helpers import clean
from test_leaks import ARRAY, BYTES, TEXT, Mine

class Thing:
    def __init__(self, *parts):
        self.parts = parts
    def __repr__(self):
        return repr(self.parts)

ITEMS = {
    "plain": {"a": [1, 2.5, None, "text", b"bytes", ("x", 10**15)], "b": "y" * 100, "long": "z" * 5000},
    "bytes": BYTES,
    "bytearray": bytearray(BYTES),
    "pickle": Thing("x" * 2000, 1j, {"k": {1, 2}}),
    "frame": Thing(ARRAY[:2000], numpy.arange(3000), numpy.ones((60, 60)), bytearray(3000)),
    "mine": BYTES,
}
what = sys.argv[1]
item = ITEMS[what]
q = SageQueue(serializer=Mine(lambda item: bytearray(item)) if what == "mine" else "pickle")
batch = [item, b"1", item]

def same(got):
    if isinstance(item, (bytes, bytearray)):
        return bytes(got) == bytes(item)
    return repr(got) == repr(item)

def filled(reservation):
    with reservation as view:
        view[:] = 7

PUTS = {
    "put": (lambda: q.put(item), 1),
    "put_many": (lambda: q.put_many(batch), 3),
    "reserve": (lambda: q.reserve(5000).commit(), 1),
    "reserve_array": (lambda: filled(q.reserve_array(3000, "u1")), 1),
}
GETS = {
    "get": (lambda: q.get(), 1),
    "get in place": (lambda: q.get(copy=False), 1),
    "lease": (lambda: q.lease(), 1),
    "lease in place": (lambda: q.lease(copy=False), 1),
    "get_many": (lambda: q.get_many(), 3),
    "get_nowait_batch": (lambda: q.get_nowait_batch(3), 3),
}
set_nomemory, remove_mem_hooks = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

def attempt(function, number):
    # The call while this allocation fails.  (Whether it succeeded, what it gave.)
    result = error = None
    set_nomemory(number, number + 1)
    try:
        result = function()
    except BaseException as caught:
        error = caught
    finally:
        remove_mem_hooks()
    if error is None:
        return True, result
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    # (the second is what the pickler makes of it)
    assert any(isinstance(each, MemoryError) or "import of module" in str(each) for each in causes), causes
    causes.clear()  # their tracebacks have what the call held
    return False, None

def items_of(call, result):
    if "lease" in call:
        result.ack()
        return [result.value]
    return result if isinstance(result, list) and "get_" in call else [result]

def check(call):
    is_put = call in PUTS
    function, count = (PUTS if is_put else GETS)[call]
    failed = 0
    for number in [1 << 30, *range(300)]:  # with the first, none fails, and what is made once is made
        if not is_put:
            q.put_many(batch[:count])
        before = q.qsize()
        done, result = attempt(function, number)
        failed += not done
        if not done:
            assert q.qsize() == before, (call, number, before, q.qsize())
        got = (items_of(call, result) if done and not is_put else []) + q.drain()
        expected = batch[:count] if done or not is_put else []
        assert len(got) == len(expected), (call, number, done, len(got))
        if "reserve" not in call:  # (what went back may come in another order)
            assert sum(map(same, got)) == sum(map(same, expected)), (call, number, done, [type(each) for each in got])
    result = got = None
    gc.collect()
    assert q.empty() and clean(q), (call, q.get_stats())
    assert failed or is_put, (call, "nothing failed")

for call in [*PUTS, *GETS]:
    if not (what == "mine" and call == "reserve_array"):
        check(call)
q.close()
print("alive")
"""


@pytest.mark.parametrize("what", ["plain", "bytes", "bytearray", "pickle", "frame", "mine"])
def test_a_call_in_which_any_allocation_fails_happens_once_or_not_at_all(what: str, run_python: Run) -> None:
    pytest.importorskip("_testcapi")
    assert run_python(NO_MEMORY, what, **WITH_HELPERS).stdout == "alive\n"
