"""What is measured: the catalogue of cells, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import arrays, calls, event_loop, idle, pingpong, ray_channel, ray_queue, throughput
from .core import Program
from .peers import OURS, PEERS, BytesHyperQ, FasterFifo, HyperQ, Peer, QuickQueue, SageInThreads, SageRaw, SageViews, Zmq
from .throughput import SINGLY, Way
from .watchdog import Measurement

#: The message of the specification.
SEED_MESSAGE = {"data": [1, 2, 3], "meta": "SAGE"}
MESSAGES = {"seed": SEED_MESSAGE, "64B": bytes(64), "1KiB": bytes(1 << 10), "64KiB": bytes(64 << 10)}
TOPOLOGIES = ((1, 1), (4, 1), (1, 4), (4, 4))  # producers, consumers
CORE_CELLS = ((1, 1, 64), (4, 4, 64), (4, 4, 200), (1, 1, 64 << 10))  # producers, consumers, bytes

ARRAYS = {"1MiB": 1 << 20, "16MiB": 16 << 20}

#: For those who carry bytes as they are.
RAW_MESSAGE = bytes(64)

#: How many tasks wait at once.
TASKS = (1, 100, 10_000)
MANY_TASKS = TASKS[-1]

#: Between two messages: whoever waits for the second has gone to sleep.
PAUSES_S = {"at-once": 0.0, "every-2ms": 0.002}

#: Names of entrants that are no peers, or peers used in another way.
C_CORE = "C core"
FUTEX = "bare futex"
BUCKETS = f"{QuickQueue.name}, buckets"
SINGLE_CALLS = f"{OURS.name}, singly"
PLAIN_CALLS = f"{OURS.name}, plain calls"

BASELINE = OURS.name


@dataclass(frozen=True)
class Settings:
    """How long everything takes."""

    rounds: int
    throughput_s: float
    core_s: float
    pingpong_rounds: int
    paced_rounds: int
    calls_repeats: int
    idle_s: float
    idle_tasks_s: float
    arrays_s: float
    costs_rounds: int
    limit_s: float = 30.0  #: a measurement that takes so much longer than it should has hung


NORMAL = Settings(
    rounds=5,
    throughput_s=0.5,
    core_s=1.0,
    pingpong_rounds=10_000,
    paced_rounds=1_000,
    calls_repeats=100,
    idle_s=10.0,
    idle_tasks_s=5.0,
    arrays_s=1.0,
    costs_rounds=30,
)
QUICK = Settings(
    rounds=2,
    throughput_s=0.1,
    core_s=0.2,
    pingpong_rounds=2_000,
    paced_rounds=200,
    calls_repeats=25,
    idle_s=2.0,
    idle_tasks_s=2.0,
    arrays_s=0.3,
    costs_rounds=6,
)


@dataclass(frozen=True)
class Cell:
    """One question, and who answers it."""

    name: str  #: "family/..."
    entrants: dict[str, Measurement]
    rounds: int
    limit_s: float

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


def catalogue(settings: Settings, peers: Iterable[type[Peer]], program: Program) -> list[Cell]:
    """The cells, with the peers that there are."""
    return [cell for cell in _Catalogue(settings, peers, program).cells() if cell.entrants]


def needs_program(cell: Cell) -> bool:
    return C_CORE in cell.entrants


class _Catalogue:
    """A method a family."""

    def __init__(self, settings: Settings, peers: Iterable[type[Peer]], program: Program) -> None:
        self.settings = settings
        self.available = set(peers)
        self.general = [peer for peer in PEERS if peer in self.available]
        self.program = program
        self.core_is_missing = program.missing() is not None

    def cells(self) -> Iterator[Cell]:
        yield from self.throughput()
        yield from self.singles()
        yield from self.batches()
        yield from self.pingpong()
        yield from self.asyncio()
        yield from self.calls()
        if not arrays.missing():
            yield from self.arrays()
        yield from self.idle()
        if not self.core_is_missing:
            yield from self.core()

    def cell(self, name: str, entrants: dict[str, Measurement], rounds: int = 0, takes_s: float = 0) -> Cell:
        return Cell(name, entrants, rounds or self.settings.rounds, self.settings.limit_s + takes_s)

    def throughput(self) -> Iterator[Cell]:
        for message_name, message in MESSAGES.items():
            for producers, consumers in TOPOLOGIES:
                entrants: dict[str, Measurement] = {
                    peer.name: partial(throughput.measure, peer, message, producers, consumers, self.settings.throughput_s)
                    for peer in self.general
                }
                yield self.cell(f"throughput/{message_name}/{producers}P{consumers}C", entrants)

    def singles(self) -> Iterator[Cell]:
        """One message a call, beside those who are said to be fast at that."""
        raw = Way(raw=True)
        for producers, consumers in ((1, 1), (4, 4)):
            moves = partial(self._moves, producers=producers, consumers=consumers)
            entrants = moves(OURS, SEED_MESSAGE)
            entrants |= moves(Zmq, SEED_MESSAGE, new=partial(Zmq, consumers))
            entrants |= moves(HyperQ, SEED_MESSAGE)
            if consumers == 1 and not ray_queue.missing():
                entrants[ray_queue.NAME] = partial(ray_queue.throughput, SEED_MESSAGE, self.settings.throughput_s, False)
            yield self.cell(f"singles/seed/{producers}P{consumers}C", entrants)
            entrants = moves(OURS, RAW_MESSAGE, raw, new=SageRaw) | moves(BytesHyperQ, RAW_MESSAGE, raw)
            yield self.cell(f"singles/raw64B/{producers}P{consumers}C", entrants)

    def batches(self) -> Iterator[Cell]:
        """BATCH messages a call.  Where a producer puts singly, or somebody chooses the size himself, the name says so."""
        both = Way(put_many=True, get_many=True, distinct=True)
        gets = Way(get_many=True, distinct=True)
        singly = Way(distinct=True)
        for producers in (1, 4):
            moves = partial(self._moves, message=SEED_MESSAGE, producers=producers, consumers=1)
            entrants = moves(OURS, way=both)
            entrants |= moves(QuickQueue, way=singly) | moves(QuickQueue, way=both, name=BUCKETS)
            entrants |= moves(FasterFifo, way=both)
            if producers == 1 and not ray_queue.missing():
                entrants[ray_queue.NAME] = partial(ray_queue.throughput, SEED_MESSAGE, self.settings.throughput_s, True)
            yield self.cell(f"batches/seed/{producers}P1C", entrants)
        yield self.cell("batches/seed/4P1C-put-singly", moves(OURS, way=gets) | moves(FasterFifo, way=gets))

        moves = partial(self._moves, message=RAW_MESSAGE, producers=1, consumers=1)
        entrants = moves(OURS, way=Way(raw=True, put_many=True, get_many=True), new=SageRaw)
        yield self.cell("batches/raw64B/1P1C", entrants | moves(BytesHyperQ, way=Way(raw=True)))

    def _moves(
        self,
        peer: type[Peer],
        message: Any,
        way: Way = SINGLY,
        *,
        producers: int,
        consumers: int,
        new: Callable[[], Peer] | None = None,
        name: str | None = None,
    ) -> dict[str, Measurement]:
        """How much this one moves, if it is there."""
        if peer not in self.available:
            return {}
        measurement = partial(throughput.measure, new or peer, message, producers, consumers, self.settings.throughput_s, way)
        return {name or peer.name: measurement}

    def pingpong(self) -> Iterator[Cell]:
        rounds = self.settings.pingpong_rounds
        entrants: dict[str, Measurement] = {peer.name: partial(pingpong.measure, peer, rounds) for peer in self.general}
        if not self.core_is_missing:
            entrants[C_CORE] = partial(self.program.pingpong, rounds)
            entrants[FUTEX] = partial(self.program.futex, rounds)
        yield self.cell("pingpong", entrants)

    def asyncio(self) -> Iterator[Cell]:
        """Ours in coroutines beside ours in plain calls, and beside others in coroutines."""
        others: list[type[Peer]] = [peer for peer in (Zmq,) if peer in self.available]
        talkers: list[type[Peer]] = [SageInThreads, *others]
        for pace, pause_s in PAUSES_S.items():
            rounds = self.settings.paced_rounds if pause_s else self.settings.pingpong_rounds
            entrants: dict[str, Measurement] = {
                BASELINE: partial(event_loop.latency_of_coroutines, OURS, rounds, pause_s),
                PLAIN_CALLS: partial(event_loop.latency_of_calls, OURS, rounds, pause_s),
            }
            entrants |= {peer.name: partial(event_loop.latency_of_coroutines, peer, rounds, pause_s) for peer in talkers}
            yield self.cell(f"asyncio/latency/{pace}", entrants, takes_s=rounds * pause_s)
        for number in TASKS:
            seconds = self.settings.throughput_s
            entrants = {
                BASELINE: partial(event_loop.tasks, OURS, SEED_MESSAGE, seconds, number),
                PLAIN_CALLS: partial(throughput.measure, OURS, SEED_MESSAGE, 1, 1, seconds),
            }
            entrants |= {peer.name: partial(event_loop.tasks, peer, SEED_MESSAGE, seconds, number) for peer in others}
            yield self.cell(f"asyncio/tasks/{number}", entrants, takes_s=30)  # pyzmq's, with many
        seconds = self.settings.idle_tasks_s
        waiters: list[type[Peer]] = [OURS, *others]
        entrants = {peer.name: partial(event_loop.idle, peer, MANY_TASKS, seconds) for peer in waiters}
        yield self.cell(f"asyncio/idle/{MANY_TASKS}", entrants, rounds=1, takes_s=seconds)

    def calls(self) -> Iterator[Cell]:
        repeats = self.settings.calls_repeats
        entrants: dict[str, Measurement] = {
            peer.name: partial(calls.singly, peer, SEED_MESSAGE, repeats) for peer in self.general
        }
        yield self.cell("calls/seed", entrants)
        in_batches: list[type[Peer]] = [peer for peer in (OURS, FasterFifo) if peer in self.available]
        entrants = {peer.name: partial(calls.batches, peer, SEED_MESSAGE, repeats) for peer in in_batches}
        entrants[SINGLE_CALLS] = partial(calls.singly, OURS, SEED_MESSAGE, repeats)
        yield self.cell("calls/seed/batches", entrants)

    def arrays(self) -> Iterator[Cell]:
        peers: list[Any] = [*self.general, SageViews]
        room_bytes = arrays.ROOM_BYTES
        for array_name, size_bytes in ARRAYS.items():
            entrants: dict[str, Measurement] = {
                peer.name: partial(arrays.throughput, partial(peer, room_bytes), size_bytes, self.settings.arrays_s)
                for peer in peers
            }
            if not ray_channel.missing():
                entrants[ray_channel.NAME] = partial(ray_channel.throughput, size_bytes, self.settings.arrays_s)
            yield self.cell(f"arrays/{array_name}/1P1C", entrants)
            entrants = {OURS.name: partial(arrays.costs, partial(OURS, room_bytes), size_bytes, self.settings.costs_rounds)}
            yield self.cell(f"costs/{array_name}", entrants)

    def idle(self) -> Iterator[Cell]:
        # One round: it is long, and its figure hardly varies.
        entrants: dict[str, Measurement] = {peer.name: partial(idle.measure, peer, self.settings.idle_s) for peer in self.general}
        yield self.cell("idle", entrants, rounds=1, takes_s=self.settings.idle_s)

    def core(self) -> Iterator[Cell]:
        for producers, consumers, size_bytes in CORE_CELLS:
            entrants: dict[str, Measurement] = {
                C_CORE: partial(self.program.throughput, producers, consumers, size_bytes, self.settings.core_s)
            }
            yield self.cell(f"core/{size_bytes}B/{producers}P{consumers}C", entrants, takes_s=self.settings.core_s)
