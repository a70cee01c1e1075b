"""Floor 2: the coroutines of SageQueue, for asyncio and what follows its loop's interface.  No thread, and no task, is made for a call.

A loop that waits for a queue has a `_Line` for it: its tasks stand there in the order in which they came, and the loop watches one
descriptor for all of them (ready.c has how that works between processes).  When the descriptor says that there is something, the line
wakes as many tasks as there are items, and each takes its item itself, without waiting, as the last thing before it returns.

Why a cancelled get loses nothing: an item is taken only by a task that runs and returns it in the same step; one that is cancelled
before has taken nothing, and its turn goes to the next.  Why a cancelled put leaves nothing half done: a put either happens in one
step or not at all.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from heapq import heappop, heappush

from . import _native
from ._errors import Empty, Full, QueueClosed, QueueNoSpace, SageQueueError, ShutDown, empty, full
from ._held import T, WithItemType, deadline_of
from ._native import FOREVER
from ._ready import LOOK_MOST_NS, LOOK_S

TYPE_CHECKING = False  # typing's own would cost the import of typing
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable, Generator, Iterable
    from typing import Any, TypeVar

    Self = TypeVar("Self", bound="AsyncCalls[Any]")

ITEMS, ROOM, DONE = 0, _native.ROOM, _native.DONE

SPIN_LEAST_NS, SPIN_MOST_NS, SHORT_NS = 1_000, 60_000, 100_000
LOOK_MOST_S = LOOK_MOST_NS * 1e-9

#: An attempt to put serializes the item.  After one in vain that took longer than that, the loop's time is for others first, so many times
#: as long, unless there is room for it now (of a batch, that is not known before).
CHEAP_NS, REST, REST_BATCH = 100_000, 10, 2

#: A deadline that has passed, but is not "do not wait", so that what is raised says that time was up.
_PAST = 1


class _Turn:
    """What a task awaits: a future, as far as tasks and loops look at it (asyncio.isfuture() says what that is).

    A future of asyncio's wakes its task in the loop's next round, after another look at all descriptors.  `go_on()` wakes it at
    once, which halves the time from a message to the task that gets it.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_loop", "granted")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._callback: Callable[[Any], object] | None = None
        self._context: Any = None
        self._cancelled: tuple[Any, ...] | None = None
        self.granted: bool | None = None  # whether it has its turn; None: it waits, or was cancelled

    def __await__(self) -> Generator[Any, None, bool]:
        if self.granted is None:
            self._asyncio_future_blocking = True
            yield self
        return bool(self.result())

    # ---- what a task calls ----

    def get_loop(self) -> AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None:
        self._callback, self._context = callback, context

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        self._callback = None
        return 1

    def done(self) -> bool:
        return self.granted is not None or self._cancelled is not None

    def cancelled(self) -> bool:
        return self._cancelled is not None

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self._cancelled = () if msg is None else (msg,)
        self._wake()
        return True

    def result(self) -> bool | None:
        if self._cancelled is not None:
            from asyncio import CancelledError

            raise CancelledError(*self._cancelled)
        return self.granted

    # ---- what a line calls ----

    def grant(self, granted: bool) -> None:
        """Its turn has come (or its time is up): it goes on in the loop's next round."""
        self.granted = granted
        self._wake()

    def go_on(self) -> None:
        """Its turn has come, and it goes on at once.  Not in a task."""
        self.granted = True
        callback = self._callback
        if callback is not None:
            self._callback = None
            self._context.run(callback, self)

    def _wake(self) -> None:
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
            self._callback = None


class _Turns:
    """Tasks that wait for the same, first come first served."""

    __slots__ = ("woken", "_again", "_again_tickets", "_tickets", "_waiting")

    def __init__(self) -> None:
        self.woken = 0  # whose turn it is, and who have not run yet
        self._waiting: OrderedDict[_Turn, int] = OrderedDict()  # with their tickets
        self._again: list[tuple[int, _Turn]] = []  # who had their turn and found nothing: a heap, also of some who have left
        self._again_tickets: set[int] = set()  # of those in it who have not left
        self._tickets = 0

    def __bool__(self) -> bool:
        """Whether anybody waits who has not been woken."""
        return bool(self._waiting or self._again_tickets)

    def is_taken(self) -> bool:
        """Whether anybody comes before one who comes now."""
        return bool(self or self.woken)

    def stand(self, turn: _Turn, ticket: int) -> int:
        """Stand in line; with the ticket of an earlier turn, where one stood then.  Returns the ticket."""
        if ticket:
            heappush(self._again, (ticket, turn))
            self._again_tickets.add(ticket)
            return ticket
        self._tickets += 1
        self._waiting[turn] = self._tickets
        return self._tickets

    def leave(self, turn: _Turn, ticket: int) -> None:
        """It does not wait any more, and may have been woken already."""
        if self._waiting.pop(turn, None) is None:
            self._again_tickets.discard(ticket)
            if not self._again_tickets:
                self._again.clear()

    def _next(self) -> _Turn | None:
        while self:
            if self._again_tickets:
                ticket, turn = heappop(self._again)
                if ticket not in self._again_tickets:
                    continue
                self._again_tickets.discard(ticket)
            else:
                turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                self.woken += 1
                return turn
        return None

    def wake(self, count: int) -> None:
        while count > 0 and (turn := self._next()):
            turn.grant(True)
            count -= 1

    def wake_at_once(self) -> None:
        """Not in a task."""
        if turn := self._next():
            turn.go_on()

    def wake_first(self) -> None:
        """For what is used by one at a time: unless somebody is at it already."""
        if not self.woken:
            self.wake(1)

    def wake_all(self) -> None:
        self.wake(len(self._waiting) + len(self._again_tickets))


class _Line:
    """Where the tasks of one loop wait for one queue.  Used in the loop's thread only, but for `close_soon`."""

    def __init__(self, handle: Any, name: str, loop: AbstractEventLoop) -> None:
        self.handle = handle
        self.name = name
        self.loop = loop
        self.getters = _Turns()
        self.putters = _Turns()
        self.joiners = _Turns()
        self.look_ns = 0  # how long a get looks before it waits: it keeps the loop from its other tasks for so long
        self._fds: dict[int, int] = {}  # our own of the descriptors, by kind: ITEMS, ROOM, DONE
        self._watched: set[int] = set()
        self._tick: TimerHandle | None = None
        self._tick_at = 0.0  # the loop's time
        self._room_needed = 0  # by the first of the putters, in bytes; 0: not known
        self._rest_until_ns = 0  # before that, the first of the putters is woken only if there is so much room
        self._rest: TimerHandle | None = None

    def __del__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Close the descriptors, which nobody watches any more."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    # ---- the loop's side ----

    def _watch(self, kind: int) -> None:
        """Have the loop watch a descriptor, until it finds that nobody waits for it any more."""
        if kind not in self._watched:
            if kind not in self._fds:
                # Our own: the queue may be closed, and its descriptor with it, by another thread, while the loop still has it.
                # Not a duplicate, which would have part in the lock that says that the queue's handle listens, also in a child.
                fd = _native.changes_fd(self.handle, kind, self.name) if kind else _native.items_fd(self.handle, self.name)
                self._fds[kind] = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self.loop.add_reader(self._fds[kind], (self._on_items, self._on_room, self._on_done)[kind])
            self._watched.add(kind)
        if self._tick is None or kind != ITEMS:
            self._tick_in(LOOK_S)

    def _tick_in(self, seconds: float) -> None:
        """Have _on_tick called by then."""
        at = self.loop.time() + seconds
        if self._tick is not None:
            if self._tick_at <= at:
                return
            self._tick.cancel()
        self._tick_at = at
        self._tick = self.loop.call_later(seconds, self._on_tick)

    def _unwatch(self, kind: int) -> None:
        if kind in self._watched:
            self.loop.remove_reader(self._fds[kind])
            self._watched.discard(kind)

    def _on_items(self) -> None:
        getters = self.getters
        if not getters:
            if not getters.woken:
                self._unwatch(ITEMS)
            return
        if not getters.woken:
            getters.wake_at_once()
            if not getters:
                return
        try:
            count = _native.size(self.handle) - getters.woken
        except SageQueueError:  # closed, or damaged: they will be told when they try
            return self.end()
        getters.wake(count)

    def _on_room(self) -> None:
        if not self.putters:
            return self._unwatch(ROOM)
        try:
            self.listen(ROOM)  # lowers the descriptor
            self._let_put()
        except SageQueueError:
            return self.end()

    def _on_done(self) -> None:
        if not self.joiners:
            return self._unwatch(DONE)
        try:
            self.listen(DONE)
        except SageQueueError:
            return self.end()
        self.joiners.wake_all()

    def _on_tick(self) -> None:
        """Look for the dead, if no other process has lately, and for whatever a descriptor could not tell.

        The descriptor of items tells the truth, so getters need this for the dead only.  Knocks may be missed (ready.c): every 100 ms.
        """
        self._tick = None
        if not (self.getters or self.putters or self.joiners):
            return
        try:
            next_ns = _native.watch(self.handle, self.name)
            if self.putters or self.joiners:
                self._tick_in(LOOK_S)
            else:
                self._tick_in(min(max((next_ns - _native.now_ns()) * 1e-9, 0.0), LOOK_MOST_S))
            if self.getters and _native.size(self.handle):
                self._on_items()
            self._let_put()
        except SageQueueError:
            return self.end()
        self.joiners.wake_all()

    def _let_put(self) -> None:
        """There may be room: it is the first one's turn, unless his attempts take long and this one would be in vain, too."""
        left_ns = self._rest_until_ns - _native.now_ns() if self._rest_until_ns and self.putters else 0
        if left_ns <= 0:
            self.putters.wake_first()
        elif self._room_needed:
            if _native.has_room(self.handle, self._room_needed):
                self.putters.wake_first()
        elif self._rest is None:
            self._rest = self.loop.call_later(left_ns * 1e-9, self._on_rested)

    def _on_rested(self) -> None:
        self._rest = None
        try:
            self._let_put()
        except SageQueueError:
            self.end()

    def found_no_room(self, needed: int, took_ns: int) -> None:
        """The first of the putters has tried, and stands in line again."""
        self._room_needed = needed
        self._rest_until_ns = _native.now_ns() + (REST if needed else REST_BATCH) * took_ns if took_ns > CHEAP_NS else 0

    def next_put(self) -> None:
        """The first of the putters leaves, having put or not."""
        self._rest_until_ns = 0
        self.putters.wake_first()

    def is_idle(self) -> bool:
        """Whether no other task could go on meanwhile, as far as can be seen.  (A loop that keeps this elsewhere is taken for busy.)"""
        return not getattr(self.loop, "_ready", True)

    def learn(self, waited_ns: int) -> None:
        """Looking a little longer would have saved a wait that was short, and is wasted before one that is long."""
        if waited_ns < SHORT_NS:
            self.look_ns = min(max(self.look_ns * 2, SPIN_LEAST_NS), SPIN_MOST_NS)
        else:
            self.look_ns = self.look_ns // 4 if self.look_ns > SPIN_LEAST_NS else 0

    # ---- the tasks' side ----

    async def turn(self, turns: _Turns, kind: int, deadline_ns: int, ticket: int) -> int:
        """Wait for this task's turn, with the ticket from the turn before if it has had one and found nothing; else 0.

        Returns the ticket, or 0 if the time is up.
        """
        its = _Turn(self.loop)
        ticket = turns.stand(its, ticket)
        timer = None
        try:
            self._watch(kind)
            if deadline_ns != FOREVER:
                timer = _Timer(its, deadline_ns)
            await its
        except BaseException:
            turns.leave(its, ticket)
            if its.granted:
                turns.woken -= 1  # it was our turn, and we do not take it
                turns.wake(1)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if its.granted:
            turns.woken -= 1
            return ticket
        turns.leave(its, ticket)
        return 0

    def listen(self, kind: int) -> None:
        """From now on, room or finished tasks raise their descriptor, which is lowered.  After this, try again."""
        _native.changes_fd(self.handle, kind, self.name)

    # ---- the end ----

    def end(self) -> None:
        """Everybody is to look: the queue is closed, or shut down."""
        self.getters.wake_all()
        self.putters.wake_all()
        self.joiners.wake_all()
        for kind in (ITEMS, ROOM, DONE):
            self._unwatch(kind)

    def close_soon(self) -> None:
        """From any thread: the queue has been closed."""
        try:
            self.loop.call_soon_threadsafe(self.end)
        except RuntimeError:  # the loop is closed: nobody waits
            pass


def _running_loop() -> AbstractEventLoop:
    """asyncio.get_running_loop(), in place of which this stands until it is first needed: asyncio is slow to import."""
    global _running_loop
    from asyncio import get_running_loop

    _running_loop = get_running_loop
    return get_running_loop()


class _Timer:
    """Ends a turn at its deadline, and not before: the timers of some loops are early by up to a millisecond."""

    __slots__ = ("_deadline_ns", "_timer", "_turn")

    def __init__(self, turn: _Turn, deadline_ns: int) -> None:
        self._turn = turn
        self._deadline_ns = deadline_ns
        self._start(deadline_ns - _native.now_ns())

    def _start(self, left_ns: int) -> None:
        self._timer = self._turn.get_loop().call_later(max(left_ns, 0) * 1e-9, self._end)

    def _end(self) -> None:
        if not self._turn.done():
            left_ns = self._deadline_ns - _native.now_ns()
            if left_ns > 0:
                self._start(left_ns)
            else:
                self._turn.grant(False)

    def cancel(self) -> None:
        self._timer.cancel()


class _TooMany(Exception):
    """The items can never be in the queue at once."""


def _refuse_part(items: int, bytes: int) -> None:
    raise _TooMany


class AsyncCalls(WithItemType[T]):
    """The coroutines of SageQueue."""

    name: str
    _handle: Any
    _port: _native.Port
    _lines: dict[AbstractEventLoop, _Line] | None = None

    if TYPE_CHECKING:

        def get_many(
            self, max_items: int | None = None, max_bytes: int | None = None, block: bool = True, timeout: float | None = None
        ) -> list[T]: ...
        def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> None: ...
        def _port_for_views(self, writable: bool) -> _native.Port: ...

    def _line(self) -> _Line:
        """The running loop's line."""
        loop = _running_loop()
        lines = self._lines
        if lines is None:
            lines = self.__dict__.setdefault("_lines", {})  # another thread may do the same
        line = lines.get(loop)
        if line is None:
            for gone in [each for each in list(lines) if each.is_closed()]:
                if (its_line := lines.pop(gone, None)) is not None:
                    its_line.forget()
            line = lines[loop] = _Line(self._handle, self.name, loop)
        return line

    def _close_lines(self) -> None:
        lines = self.__dict__.pop("_lines", {})
        for line in list(lines.values()):
            line.close_soon()

    async def get_async(self, block: bool = True, timeout: float | None = None, *, copy: bool = True) -> T:
        """As get(), for tasks: the others go on while it waits.  Tasks of one loop get items in the order in which they asked.

        Raises what get() raises.  Cancelling it loses nothing.
        """
        port = self._port if copy else self._port_for_views(False)
        deadline_ns = deadline_of(block, timeout)
        if deadline_ns == 0:
            return port[0]  # type: ignore[no-any-return]
        line = self._line()
        getters = line.getters
        began_ns = 0
        if not getters.is_taken():
            try:
                return port[-line.look_ns if line.is_idle() else 0]  # type: ignore[no-any-return]
            except Empty:
                began_ns = _native.now_ns()
        ticket = 0
        while ticket := await line.turn(getters, ITEMS, deadline_ns, ticket):
            if began_ns:
                line.learn(_native.now_ns() - began_ns)
                began_ns = 0
            try:
                return port[0]  # type: ignore[no-any-return]
            except Empty:
                pass
            except (ShutDown, QueueClosed):
                line.end()
                raise
        return port[_PAST]  # type: ignore[no-any-return]

    async def get_many_async(
        self, max_items: int | None = None, max_bytes: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[T]:
        """As get_many(), for tasks."""
        deadline_ns = deadline_of(block, timeout)
        if deadline_ns == 0:
            return self.get_many(max_items, max_bytes, False)
        line = self._line()
        getters = line.getters
        if not getters.is_taken():
            try:
                return self.get_many(max_items, max_bytes, False)
            except Empty:
                pass
        ticket = 0
        while ticket := await line.turn(getters, ITEMS, deadline_ns, ticket):
            try:
                return self.get_many(max_items, max_bytes, False)
            except Empty:
                pass
            except (ShutDown, QueueClosed):
                line.end()
                raise
        raise empty("Get operation timed out")

    async def put_async(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """As put(), for tasks: the others go on while it waits.  Tasks of one loop put in the order in which they asked.

        Raises what put() raises.  Cancelling it puts nothing.
        """
        port = self._port
        deadline_ns = deadline_of(block, timeout)
        putters = self._line().putters
        if deadline_ns == 0 or not putters.is_taken():
            try:
                port[0] = item
                return
            except Full:
                if deadline_ns == 0:
                    raise
            except QueueNoSpace:
                if deadline_ns == 0 or not _native.may_free_pages(self._handle):
                    raise

        def attempt() -> None:
            port[0] = item

        await self._put_in_turn(attempt, deadline_ns, False)

    async def put_many_async(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> None:
        """As put_many(), for tasks: all of the items, or none.  Tasks of one loop put in the order in which they asked.

        Also of a batch that goes in as several parts, no other task of this loop puts anything between them.  Cancelling it puts
        nothing, or of such a batch nothing more: the CancelledError has `put_items`, as other exceptions.
        """
        batch = list(items)
        deadline_ns = deadline_of(block, timeout)
        if deadline_ns == 0:
            return self.put_many(batch, False)
        if deadline_ns != FOREVER:
            return await self._put_in_turn(lambda: self.put_many(batch, False), deadline_ns, True)
        port = self._port
        put, together = 0, len(batch)

        def attempt() -> None:
            nonlocal put, together
            while True:
                part = batch[put : put + together]
                try:
                    port[0, _refuse_part] = part
                except _TooMany:
                    together = (len(part) + 1) // 2
                else:
                    put += len(part)
                    if put == len(batch):
                        return

        try:
            await self._put_in_turn(attempt, deadline_ns, True)
        except BaseException as error:
            if put:
                error.put_items = put  # type: ignore[attr-defined]
            raise

    async def _put_in_turn(self, attempt: Callable[[], None], deadline_ns: int, is_batch: bool) -> None:
        """Attempt it until it raises neither Full nor, as long as what is in the queue may free pages, QueueNoSpace: each task when
        its turn has come."""
        line = self._line()
        putters = line.putters
        first = not putters.is_taken()
        ticket = 0
        refusal: Exception | None = None
        try:
            while True:
                if first:
                    line.listen(ROOM)
                    began_ns = _native.now_ns()
                    try:
                        return attempt()
                    except Full as error:
                        needed = 0 if is_batch else getattr(error, "needed", 0)
                        line.found_no_room(needed, _native.now_ns() - began_ns)
                        refusal = None
                    except QueueNoSpace as error:
                        if not _native.may_free_pages(self._handle):
                            raise
                        line.found_no_room(0, _native.now_ns() - began_ns)
                        refusal = error
                ticket = await line.turn(putters, ROOM, deadline_ns, ticket)
                if not ticket:
                    raise refusal or full("Put operation timed out")
                first = True
        except (ShutDown, QueueClosed):
            line.end()
            raise
        finally:
            refusal = None  # else it and this frame keep each other, and the queue's descriptors
            if not putters:
                _native.pass_on(self._handle)
            elif first:
                line.next_put()

    def __aiter__(self: Self) -> Self:
        return self

    async def __anext__(self) -> T:
        """The next item; the iteration ends when the queue is shut down and nothing is left."""
        try:
            return await self.get_async()
        except ShutDown:
            raise StopAsyncIteration from None

    async def join_async(self) -> None:
        """As join(), for tasks."""
        line = self._line()
        while not _native.is_joined(self._handle, self.name):
            line.listen(DONE)
            if _native.is_joined(self._handle, self.name):
                break
            await line.turn(line.joiners, DONE, FOREVER, 0)
