"""What is measured: the catalogue of cells, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from . import arrays, calls, idle, pingpong, ray_channel, throughput
from .core import Program
from .peers import OURS, Peer, SageViews
from .watchdog import Measurement

#: The message of the specification.
SEED_MESSAGE = {"data": [1, 2, 3], "meta": "SAGE"}
MESSAGES = {"seed": SEED_MESSAGE, "64B": bytes(64), "1KiB": bytes(1 << 10), "64KiB": bytes(64 << 10)}
TOPOLOGIES = ((1, 1), (4, 1), (1, 4), (4, 4))  # producers, consumers
CORE_CELLS = ((1, 1, 64), (4, 4, 64), (4, 4, 200), (1, 1, 64 << 10))  # producers, consumers, bytes

ARRAYS = {"1MiB": 1 << 20, "16MiB": 16 << 20}

#: Names of entrants that are no peers.
C_CORE = "C core"
FUTEX = "bare futex"


@dataclass(frozen=True)
class Settings:
    """How long everything takes."""

    rounds: int
    throughput_s: float
    core_s: float
    pingpong_rounds: int
    calls_repeats: int
    idle_s: float
    arrays_s: float
    costs_rounds: int
    limit_s: float = 30.0  #: a measurement that takes so much longer than it should has hung


NORMAL = Settings(rounds=5, throughput_s=0.5, core_s=1.0, pingpong_rounds=10_000, calls_repeats=100, idle_s=10.0, arrays_s=1.0, costs_rounds=30)
QUICK = Settings(rounds=2, throughput_s=0.1, core_s=0.2, pingpong_rounds=2_000, calls_repeats=25, idle_s=2.0, arrays_s=0.3, costs_rounds=6)


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
    peers = list(peers)
    core_is_missing = program.missing() is not None

    def cell(name: str, entrants: dict[str, Measurement], rounds: int = settings.rounds, takes_s: float = 0) -> Cell:
        return Cell(name, entrants, rounds, settings.limit_s + takes_s)

    cells = []
    for message_name, message in MESSAGES.items():
        for producers, consumers in TOPOLOGIES:
            entrants = {
                peer.name: partial(throughput.measure, peer, message, producers, consumers, settings.throughput_s)
                for peer in peers
            }
            cells.append(cell(f"throughput/{message_name}/{producers}P{consumers}C", entrants))

    entrants = {peer.name: partial(pingpong.measure, peer, settings.pingpong_rounds) for peer in peers}
    if not core_is_missing:
        entrants[C_CORE] = partial(program.pingpong, settings.pingpong_rounds)
        entrants[FUTEX] = partial(program.futex, settings.pingpong_rounds)
    cells.append(cell("pingpong", entrants))

    cells.append(cell("calls/seed", {peer.name: partial(calls.measure, peer, SEED_MESSAGE, settings.calls_repeats) for peer in peers}))

    if not arrays.missing():
        for array_name, size_bytes in ARRAYS.items():
            entrants = {
                peer.name: partial(arrays.throughput, partial(peer, arrays.ROOM_BYTES), size_bytes, settings.arrays_s)
                for peer in [*peers, SageViews]
            }
            if not ray_channel.missing():
                entrants[ray_channel.NAME] = partial(ray_channel.throughput, size_bytes, settings.arrays_s)
            cells.append(cell(f"arrays/{array_name}/1P1C", entrants))
            entrants = {OURS.name: partial(arrays.costs, partial(OURS, arrays.ROOM_BYTES), size_bytes, settings.costs_rounds)}
            cells.append(cell(f"costs/{array_name}", entrants))

    # One round: it is long, and its figure hardly varies.
    entrants = {peer.name: partial(idle.measure, peer, settings.idle_s) for peer in peers}
    cells.append(cell("idle", entrants, rounds=1, takes_s=settings.idle_s))

    if not core_is_missing:
        for producers, consumers, size_bytes in CORE_CELLS:
            entrants = {C_CORE: partial(program.throughput, producers, consumers, size_bytes, settings.core_s)}
            cells.append(cell(f"core/{size_bytes}B/{producers}P{consumers}C", entrants, takes_s=settings.core_s))
    return [cell for cell in cells if cell.entrants]


def needs_program(cell: Cell) -> bool:
    return C_CORE in cell.entrants


BASELINE = OURS.name
