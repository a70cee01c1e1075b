"""What a serializer that keeps `buffer.obj` gets of it later: the memory of its message while that is its own, and never another's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from sage_queue import QueueClosed, SageQueue

SIZE = 200_000
GONE = "this memory is the queue's again"


class Keeper:
    """Keeps what its buffers lie in, and on demand a view as well."""

    name = "keeper"

    def __init__(self) -> None:
        self.blocks: list[Any] = []
        self.views: list[memoryview] = []
        self.keep_views = False
        self.fails: type[BaseException] | None = None

    def dumps(self, item: bytes) -> bytes:
        return item

    def loads(self, buffer: Any) -> int:
        self.blocks.append(buffer.obj if isinstance(buffer, memoryview) else buffer)
        if self.keep_views:
            self.views.append(memoryview(buffer))
        if self.fails:
            raise self.fails("no")
        return len(buffer)


def fill(q: SageQueue[Any], letter: bytes) -> None:
    q.put(letter * SIZE)


def is_refused(block: Any) -> bool:
    try:
        memoryview(block)
    except BufferError as error:
        return GONE in str(error)
    return False


def end_get(q: SageQueue[Any], keeper: Keeper) -> None:
    assert q.get(copy=False, writable=True) == SIZE


def end_get_that_fails(q: SageQueue[Any], keeper: Keeper) -> None:
    keeper.fails = KeyError
    try:
        q.get(copy=False, writable=True)
        raise AssertionError("it was decoded")
    except ValueError as error:  # gone with the block; what pytest keeps of it would keep the buffer, too
        assert "deserialize" in str(error)
    keeper.fails = None


def end_lease_by_ack(q: SageQueue[Any], keeper: Keeper) -> None:
    q.lease(copy=False, writable=True).ack()


def end_lease_by_nack(q: SageQueue[Any], keeper: Keeper) -> None:
    q.lease(copy=False, writable=True).nack()
    q.get_nowait()
    keeper.blocks.pop()


def end_lease_by_dropping_it(q: SageQueue[Any], keeper: Keeper) -> None:
    lease = q.lease(copy=False, writable=True)
    del lease
    q.get_nowait()
    keeper.blocks.pop()


def end_lease_by_an_error(q: SageQueue[Any], keeper: Keeper) -> None:
    with pytest.raises(ZeroDivisionError), q.lease(copy=False, writable=True):
        1 / 0
    q.get_nowait()
    keeper.blocks.pop()


ENDS: list[Callable[[SageQueue[Any], Keeper], None]] = [
    end_get, end_lease_by_ack, end_lease_by_nack, end_lease_by_dropping_it, end_lease_by_an_error,
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_who_has_kept_a_block_sees_nothing_of_the_next_message(end: Callable[[SageQueue[Any], Keeper], None]) -> None:
    keeper = Keeper()
    with SageQueue[Any](serializer=keeper) as q:
        fill(q, b"a")
        end(q, keeper)
        block = keeper.blocks[0]
        assert is_refused(block)
        assert q.get_stats()["arena_used_bytes"] == 0
        fill(q, b"b")  # in the same place
        assert is_refused(block)
        with q.lease(copy=False) as message:
            assert message.value == SIZE
            assert bytes(memoryview(keeper.blocks[-1])[:3]) == b"bbb"
            assert is_refused(block)
        assert is_refused(block)


def test_what_an_exception_s_traceback_still_looks_at_is_kept() -> None:
    keeper = Keeper()
    with SageQueue[Any](serializer=keeper) as q:
        fill(q, b"a")
        end_get_that_fails(q, keeper)
        fill(q, b"b")
        assert bytes(memoryview(keeper.blocks[0])[:3]) == b"aaa"
        assert q.get(copy=False) == SIZE
        assert bytes(memoryview(keeper.blocks[0])[:3]) == b"aaa"


@pytest.mark.parametrize("end", [end_get, end_lease_by_ack], ids=lambda end: end.__name__)
def test_a_message_that_is_still_looked_at_is_kept_and_may_be_looked_at_again(end: Callable[[SageQueue[Any], Keeper], None]) -> None:
    keeper = Keeper()
    keeper.keep_views = True
    with SageQueue[Any](serializer=keeper) as q:
        fill(q, b"a")
        end(q, keeper)
        assert q.get_stats()["held"] == 1
        fill(q, b"b")
        assert bytes(memoryview(keeper.blocks[0])[:3]) == bytes(keeper.views[0][:3]) == b"aaa"
    assert bytes(memoryview(keeper.blocks[0])[-3:]) == b"aaa"  # closed, and still ours


@pytest.mark.parametrize("end", [end_lease_by_nack, end_lease_by_dropping_it, end_lease_by_an_error], ids=lambda end: end.__name__)
def test_what_went_back_while_it_was_looked_at_is_not_looked_at_anew(end: Callable[[SageQueue[Any], Keeper], None]) -> None:
    keeper = Keeper()
    keeper.keep_views = True
    with SageQueue[Any](serializer=keeper) as q:
        fill(q, b"a")
        end(q, keeper)
        assert is_refused(keeper.blocks[0])
        assert len(keeper.views[0]) == SIZE  # what was there before stays mapped
        fill(q, b"b")
        assert is_refused(keeper.blocks[0])
        q.get()
    assert bytes(keeper.views[0][:1]) in (b"a", b"b")
    assert is_refused(keeper.blocks[0])


def test_what_close_gave_back_is_not_looked_at_anew() -> None:
    keeper = Keeper()
    q = SageQueue[Any](serializer=keeper)
    fill(q, b"a")
    lease = q.lease(copy=False)
    q.close()
    with pytest.raises(QueueClosed):
        lease.ack()
    assert is_refused(keeper.blocks[0])


def test_items_got_together_or_one_by_one_or_with_a_copy_lie_in_memory_of_their_own() -> None:
    keeper = Keeper()
    with SageQueue[Any](serializer=keeper) as q:
        for get in (lambda: q.get_many(2), lambda: [q.get(), q.get()], lambda: [next(items) for items in [iter(q)] for _ in range(2)]):
            keeper.blocks.clear()
            fill(q, b"a")
            fill(q, b"b")
            assert get() == [SIZE, SIZE]  # type: ignore[no-untyped-call]
            fill(q, b"c")
            assert [bytes(memoryview(block)[:1]) for block in keeper.blocks] == [b"a", b"b"]
            q.get()


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_a_reservation_s_memory_is_not_looked_at_anew_when_it_is_over(end: str) -> None:
    with SageQueue[Any](serializer="raw") as q:
        reservation = q.reserve(SIZE)
        view = reservation.target
        block = view.obj
        view[:] = b"r" * SIZE
        getattr(reservation, end)()
        if end == "commit":
            assert is_refused(block)
            assert q.get() == b"r" * SIZE
            fill(q, b"n")
            assert is_refused(block)
        else:  # as long as somebody has it, it is nobody else's
            fill(q, b"n")
            assert bytes(memoryview(block)[:1]) == b"r"


def test_a_forked_child_does_not_look_anew_at_what_its_parent_has_taken() -> None:
    keeper = Keeper()
    with SageQueue[Any](serializer=keeper) as q:
        fill(q, b"a")
        lease = q.lease(copy=False)
        child = os.fork()
        if child == 0:
            try:
                lease._taken.nack()  # type: ignore[union-attr]
                os._exit(0 if is_refused(keeper.blocks[0]) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert bytes(memoryview(keeper.blocks[0])[:1]) == b"a"
        lease.ack()
        assert is_refused(keeper.blocks[0])
