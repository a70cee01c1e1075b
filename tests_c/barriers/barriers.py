#!/usr/bin/env python3
"""Does every ordered operation of the library compile to the AArch64 instruction that its order asks for?

    barriers.py [--quiet] [C_SRC]
    barriers.py --planted           are weakened copies of the sources found?

Reads the sources for every call of an ordered operation of atomics.h (`rbi_load_total64(&lane->cursors->head)`), and holds each
against the tables below: which word it is, which operations are strong enough for that word, and which labels of docs/memory-model.md
it is an end of.  Then compiles the sources for AArch64 in several ways, asks the debug information which source line each atomic
instruction comes from, and compares.  Prints a table by label, for each way of compiling.

Ends with 1 if a word is read or written by an operation that is not in its row, if an end of a label is gone, or if an instruction
is not what it should be; with 77, and the reason, if there is no cross compiler.

What it cannot see: an operation that is missing, and whether the orders suffice.  That is argued in docs/memory-model.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "aarch64-linux-gnu-"
SKIP = 77

# ---- what should be so ----


@dataclass(frozen=True)
class Word:
    """A shared word: how its address is written, and the operations that are strong enough for it."""

    name: str
    address: str  # matched against "file:function:address", up to its end
    operations: str


TOTAL = "load_total cas_total store_total add_total"

# The first that matches counts.
WORDS = (
    # relaxed, each with its reason at the place; docs/memory-model.md lists them
    Word("pins: a slot's fields", r"pins\.c:.*slot->(position|ticket|generation|turn)", "load_relaxed store_relaxed"),
    Word("pins: a slot's state", r"pins\.c:.*(->|\.)state", "load_relaxed load_acquire store_release cas_acq_rel"),
    Word("pins: the next chunk", r"pins\.c:.*next", "load_acquire cas_acq_rel"),
    Word("pins: the plain ones", r"pins\.c:.*->plain", "load_total add_total cas_total"),
    Word("at the descriptors", r"ready\.c:.*->telling", "load_total store_total cas_total"),
    Word("whether we listen", r"ready\.c:.*->asked", "load_total store_total"),
    Word("why a letter stays", r"(take|bury)\.c:.*->letter_trouble", "load_relaxed store_relaxed"),
    Word("arena's guess", r"arena\.c:.*->(short_end|trimmed_ns)", "load_relaxed store_relaxed"),
    Word("until when a turn lasts", r"turn\.c:.*->turn\.until_ns", "load_relaxed store_relaxed"),
    Word("notes of this process", r"turn\.c:.*(->notes\[i\]|:oldest|->some_notes|->consumed_before)", "load_relaxed store_relaxed cas_acq_rel"),
    Word("window", r"(calls\.h|turn\.c|registry\.c):.*->turn\.window", "load_total cas_total"),
    Word("an entry's counters", r".*->(puts|sleeps|bytes_got|bytes_put|puts_before|moved)", "load_relaxed own_add"),
    Word("gets, where counted", r"take\.c:count_get:.*->gets", "own_add"),
    Word("gets, done", r"registry\.c:(owed|forgive|write_entry):.*(gets|done|forgiven|puts)", "load_relaxed store_total"),
    Word("gets, a statistic", r"queue\.c:.*->gets", "load_relaxed"),
    Word("state, a statistic", r"queue\.c:ringbuf_get_stats:.*->state", "load_relaxed"),
    Word("statistics", r".*->(recoveries|reservations|generation|dead_letters)", "load_relaxed add_relaxed"),
    Word("guesses of this process", r".*vigil(->|\.)\w+|.*->(next_poll_ns|next_trim_ns|in_vain|stuck_at|stuck_since_ns|served|lag|spin_ns)|.*:&known",
         "load_relaxed store_relaxed"),
    Word("hints about looks", r"registry\.c:.*watch(->|\.)(looked_ns|cost_ns|participants)", "load_relaxed store_relaxed cas_acq_rel"),
    Word("looks of this process", r"segment\.c:.*:(&next_look\.\w+|next_ns)", "load_relaxed store_relaxed"),
    Word("entries by process", r"files\.c:.*:&by_process_count", "load_relaxed add_relaxed"),
    Word("cursors, before anybody sees them", r"ring\.c:rbi_ring_start_at:.*", "store_relaxed"),
    Word("REST of a run of ours", r"arena\.c:free_blocks:&arena->table\[block\]", "load_relaxed store_release"),
    Word("record of a run", r"arena\.c:.*(->|\.)record", "load_relaxed store_relaxed"),
    Word("size of a record, by its word", r"ring\.c:(count_reference|rbi_ring_fate):.*->size", "load_relaxed"),
    # ordered
    Word("put_epoch, where to prefault", r"segment\.c:prefault:.*\.put_epoch", "load_total"),
    Word("slot word", r"ring\.c:.*(slot->word|slot_at\(.*\)->word|void_claim:shared)", "load_total cas_total store_total"),
    Word("size of a record", r"ring\.c:.*->size", "load_acquire store_release"),
    Word("tail, head, irregular", r"ring\.c:.*->(tail|head|irregular)", "load_total cas_total"),
    Word("reclaim", r"ring\.c:.*->reclaim", "load_acquire cas_acq_rel"),
    Word("reclaim_seen", r"ring\.c:.*->reclaim_seen", "load_acquire store_release"),
    Word("reserved_cells, where looked at", r"ring\.c:look_at_reserved:.*->reserved_cells", "load_total"),
    Word("reserved_cells", r"(ring\.c:rbi_ring_raise_reserved:reserved|segment\.c:.*reserved_cells)", "load_acquire cas_total"),
    Word("reserved_seen", r"ring\.c:.*->(reserved_seen|roomy)", "load_acquire store_release"),
    Word("hint, epochs", r"ring\.c:.*->(returned|put_epoch|get_epoch)", "load_total cas_total"),
    Word("block, where claimed", r"arena\.c:claim:(&arena->table\[first\]|next)", "load_acquire cas_acq_rel"),
    Word("block, where freed", r"arena\.c:(free_blocks|rbi_arena_set_backed):&arena->table\[.*\]", "store_release"),
    Word("block, by its owner", r"arena\.c:change:shared", "load_acquire cas_total"),
    Word("block", r"arena\.c:.*:(&arena->table\[.*\]|shared)", "load_total cas_total store_total"),
    Word("size of a run", r"arena\.c:.*(->|\.)size", "load_acquire store_release"),
    Word("parts", r"arena\.[ch]:.*->parts", "load_total cas_total"),
    Word("event word", r"wait\.[ch]:.*&event->word", "load_total cas_total add_total"),
    Word("listeners", r"ready\.[ch]:.*(->listeners\[.*\]|count_listener:word)", "load_total cas_total"),
    Word("shutdown", r".*->shutdown", "load_total cas_total"),
    Word("state of an entry", r".*(->|\]\.)state", "load_total store_total"),
    Word("participants_high", r".*->participants_high", "load_total cas_total"),
    Word("gets, forgiven, where summed up", r"registry\.c:rbi_registry_gets_owed:.*\.(gets|forgiven)", "load_acquire"),
    Word("done", r"(registry\.c:.*\.done|queue\.c:rbi_mark_done:mine)", "load_total cas_total"),
    Word("a mapping under guard", r"guard\.c:.*(entry|guarded)->\w+", TOTAL),
    Word("calls, where lost", r"guard\.c:rbi_guard_lose:word", "load_total cas_total"),
    Word("deletion, removed", r"(queue|segment)\.c:.*->(deletion|removed)", TOTAL),
    Word("calls that become participants", r"segment\.c:.*->entering", TOTAL),
    Word("calls, pins", r"segment\.[ch]:.*->(calls|pins)", TOTAL + " own_add_total"),
)

# The ends of each label, as FUNCTION OPERATION WORD.  Of an edge: from | to.  Of a pair: one side's write | its look | the other's
# write | its look; all of a pair are in the total order, which the instructions of `total` are and those of acquire and release are not.
ENDS = {
    "E1 publish": (
        ("rbi_ring_publish cas_total slot word", "rbi_ring_give_back store_total slot word", "undo cas_total slot word"),
        ("load_word load_total slot word", "take_record cas_total slot word"),
    ),
    "E2 release": (
        ("rbi_ring_release store_total slot word", "void_claim cas_total slot word"),
        ("load_word load_total slot word",),
    ),
    "E3 reclaim": (
        ("reclaim cas_acq_rel reclaim", "make_room store_release reclaim_seen"),
        ("load_reclaim load_acquire reclaim", "rbi_ring_claim load_acquire reclaim_seen"),
    ),
    "E4 pages": (
        ("rbi_ring_raise_reserved cas_total reserved_cells", "look_at_reserved store_release reserved_seen"),
        ("look_at_reserved load_total reserved_cells, where looked at", "has_pages_up_to load_acquire reserved_seen",
         "rbi_ring_claim load_acquire reserved_seen"),
    ),
    "E5 entry": (
        ("rbi_registry_join store_total state of an entry", "free_entry store_total state of an entry",
         "rbi_registry_leave store_total state of an entry", "raise_high cas_total participants_high"),
        ("rbi_registry_high load_total participants_high", "ask_all load_total state of an entry",
         "rbi_registry_join load_total state of an entry", "ringbuf_get_peers load_total state of an entry"),
    ),
    "E6 done": (("rbi_mark_done cas_total done",), ("rbi_registry_done load_total done",)),
    "E7 block": (
        ("free_blocks store_release REST of a run of ours", "free_blocks store_release block, where freed"),
        ("load_word load_total block", "claim load_acquire block, where claimed", "claim cas_acq_rel block, where claimed"),
    ),
    "E8 parts": (
        ("rbi_arena_raise_parts cas_total parts",),
        ("load_parts load_total parts", "rbi_arena_is_used load_total parts"),
    ),
    "E9 run": (
        ("change cas_total block, by its owner", "return_lease store_total block"),
        ("load_word load_total block", "rbi_arena_take_returned cas_total block", "rbi_arena_lease_queued cas_total block"),
    ),
    "E10 room": (("rbi_event_wake_all_if_any add_total event word",), ("rbi_event_announce cas_total event word",)),
    "E11 size": (
        ("rbi_ring_publish store_release size of a record", "write_attempts store_release size of a record",
         "write_entry store_release size of a run", "write_attempts store_release size of a run"),
        ("describe load_acquire size of a record", "describe load_acquire size of a run"),
    ),
    "T1 items": (
        ("rbi_ring_publish cas_total slot word", "rbi_ring_give_back store_total slot word",
         "rbi_ring_raise_reserved cas_total reserved_cells"),
        ("rbi_event_wake_one load_total event word",),
        ("rbi_event_announce cas_total event word", "rbi_event_listen cas_total event word"),
        ("load_word load_total slot word", "look_at_reserved load_total reserved_cells, where looked at",
         "rbi_ring_take load_total hint, epochs", "rbi_ring_take load_total tail, head, irregular"),
    ),
    "T2 space": (
        ("rbi_ring_release store_total slot word", "advance_head cas_total tail, head, irregular"),
        ("rbi_event_wake_one load_total event word",),
        ("rbi_event_announce cas_total event word", "rbi_event_listen cas_total event word"),
        ("load_word load_total slot word", "count_items load_total tail, head, irregular"),
    ),
    "T3 shutdown": (
        ("rbi_ring_claim cas_total slot word",),
        ("rbi_shutdown_of load_total shutdown",),
        ("ringbuf_shutdown cas_total shutdown",),
        ("load_word load_total slot word", "rbi_ring_take load_total tail, head, irregular"),
    ),
    "T4 tasks": (
        ("rbi_mark_done cas_total done",),
        ("rbi_event_is_heard load_total event word",),
        ("rbi_event_announce cas_total event word", "rbi_event_listen cas_total event word"),
        ("rbi_registry_done load_total done", "load_word load_total slot word"),
    ),
    "T5 close": (
        ("rbi_handle_enter own_add_total calls, pins", "rbi_event_announce cas_total event word"),
        ("rbi_handle_is_closed load_total calls, pins",),
        ("close_within cas_total calls, pins", "bump cas_total event word"),
        ("close_within load_total calls, pins",),
    ),
    "T6 hint": (
        ("rbi_ring_give_back store_total slot word", "change cas_total block, by its owner", "return_lease store_total block",
         "rbi_ring_set_returned cas_total hint, epochs"),
        (),
        ("rbi_ring_clear_returned cas_total hint, epochs",),
        ("rbi_ring_take load_total hint, epochs", "load_word load_total slot word", "load_word load_total block"),
    ),
    "T7 lane": (
        ("meet_end_at_head cas_total hint, epochs",),
        ("is_quiet load_total hint, epochs",),
        ("take_record cas_total slot word",),
        ("rbi_ring_take load_total hint, epochs", "load_word load_total slot word"),
    ),
    "T8 listener": (
        ("take_record cas_total slot word", "advance_head cas_total tail, head, irregular", "rbi_event_listen cas_total event word",
         "rbi_event_unlisten cas_total event word"),
        ("rbi_ready_is_asked load_total listeners", "is_current load_total listeners"),
        ("count_listener cas_total listeners",),
        ("load_word load_total slot word", "rbi_ring_ready_at_head load_total tail, head, irregular"),
    ),
    "T9 window": (
        ("rbi_turn_end cas_total window", "end_turn cas_total window"),
        ("rbi_event_wake_all_if_any add_total event word",),
        ("rbi_event_announce cas_total event word",),
        ("rbi_turn_to_spare load_total window",),
    ),
}


@dataclass(frozen=True)
class Way:
    """A way of compiling, and what a compare-and-swap and an addition become."""

    name: str
    flags: tuple[str, ...]
    cas: tuple[str, ...]
    add: tuple[str, ...]


WAYS = (
    Way("LL/SC, ARMv8.0", ("-march=armv8-a", "-mno-outline-atomics"), ("ldaxr", "stlxr"), ("ldaxr", "stlxr")),
    Way("LSE, ARMv8.1", ("-march=armv8.1-a",), ("casal",), ("ldaddal",)),
    Way("LSE and RCpc, ARMv8.4", ("-march=armv8.4-a",), ("casal",), ("ldaddal",)),
    Way("chosen at run time, the default", ("-moutline-atomics",), ("cas_acq_rel",), ("ldadd_acq_rel",)),
)


def expected(way: Way, operation: str) -> tuple[set[str], set[str]]:
    """The instructions that the operation must consist of, and those that it may have instead of the first."""
    if operation == "load_total":
        return {"ldar"}, set()
    if operation == "load_acquire":
        return {"ldar"}, {"ldapr"}  # an RCpc load may pass earlier releases, so it is not enough for `total`
    if operation in ("store_release", "store_total"):
        return {"stlr"}, {"stlur"}  # the same with another form of address
    return set(way.cas if operation.startswith("cas") else way.add), set()


# Weakened copies of the sources, and the way of compiling that shows it; none where reading the sources does.
PLANTED = (
    ("[E1]: publish in no total order", "ring.c", "rbi_cas_total64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))",
     "rbi_cas_acq_rel64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))", False),
    ("[E3]: relaxed where reclaim is read", "ring.c", "rbi_load_acquire64(&lane->cursors->reclaim) & position_mask",
     "rbi_load_relaxed64(&lane->cursors->reclaim) & position_mask", False),
    ("[E7]: a block freed without release", "arena.c", "rbi_store_release64(&arena->table[first], freed)",
     "rbi_store_relaxed64(&arena->table[first], freed)", False),
    ("[T1]: the sleepers looked at by an acquire", "wait.c", "uint32_t word = rbi_load_total32(&event->word); /* [T1] [T2] */",
     "uint32_t word = rbi_load_acquire32(&event->word); /* [T1] [T2] */", False),
    ("acquire means nothing", "atomics.h", "(rbi_atomic##bits *)(uintptr_t)word, memory_order_acquire)",
     "(rbi_atomic##bits *)(uintptr_t)word, memory_order_relaxed)", True),
    ("release means nothing", "atomics.h", "value, memory_order_release)", "value, memory_order_relaxed)", True),
    ("a compare-and-swap does not release", "atomics.h", "desired, memory_order_seq_cst,\\\n", "desired, memory_order_acquire,\\\n", True),
    ("total loads are relaxed", "atomics.h", "(rbi_atomic##bits *)(uintptr_t)word, memory_order_seq_cst)",
     "(rbi_atomic##bits *)(uintptr_t)word, memory_order_relaxed)", True),
)

# Called by the tests only.
NOT_COMPILED = {"rbi_event_has_waiters"}

# ---- the sources ----


@dataclass
class Site:
    """A call of an operation."""

    file: str
    line: int
    function: str
    operation: str
    address: str
    word: Word | None = None
    found: dict[str, set[str]] = field(default_factory=dict)  # by way: the instructions

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line} {self.function}"

    @property
    def end(self) -> str:
        return f"{self.function} {self.operation} {self.word.name if self.word else '?'}"


CALL = re.compile(r"\brbi_((?:own_)?(?:load|store|add|cas)(?:_relaxed|_acquire|_release|_acq_rel|_total)?)(?:32|64)\(")
DEFINITION = re.compile(r"[a-z][\w *]*?\b(\w+)\((?:[^;]*$|.*\{)")


def without_comments(text: str) -> str:
    """The text with comments blanked, line for line."""
    return re.sub(r"/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL)


def first_argument(text: str, begin: int) -> str:
    depth = 0
    for end in range(begin, len(text)):
        if text[end] in "([":
            depth += 1
        elif text[end] in ")]" and depth:
            depth -= 1
        elif text[end] in "),":
            if depth == 0:
                return " ".join(text[begin:end].split())
    raise ValueError(f"no end of the argument at {text[begin:begin + 40]!r}")


def sites_of(source: Path) -> Iterator[Site]:
    for path in sorted(source.glob("*.[ch]")):
        if path.name == "atomics.h":
            continue
        text = without_comments(path.read_text())
        function, offset = "?", 0
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if definition := DEFINITION.match(line.rstrip("\n")):
                function = definition[1]
            for call in CALL.finditer(line):
                address = first_argument(text, offset + call.end())
                yield Site(path.name, number, function, call[1], address)
            offset += len(line)


def word_of(site: Site) -> Word | None:
    written = f"{site.file}:{site.function}:{site.address}"
    return next((word for word in WORDS if re.fullmatch(word.address, written)), None)


def check_sources(sites: list[Site]) -> list[str]:
    wrong = []
    for site in sites:
        site.word = word_of(site)
        if site.word is None:
            wrong.append(f"{site.place}: no row of WORDS is about {site.address}")
        elif site.operation not in site.word.operations.split():
            wrong.append(f"{site.place}: {site.operation} of {site.word.name}, which takes {site.word.operations}")
    ends = {site.end for site in sites}
    for label, sides in ENDS.items():
        for end in (end for side in sides for end in side):
            if end not in ends:
                wrong.append(f"[{label}]: there is no {end}")
            if label.startswith("T") and "_total " not in end:
                wrong.append(f"[{label}]: {end} is not in the total order")
    return wrong


# ---- what is compiled ----

ATOMIC = re.compile(r"ld(a|x|ap|ax)rb?|ldapur|stlu?r|st(l?)xr|cas\w*|swp\w*|ld(add|clr|set|eor)\w*|stadd\w*|dmb")
OUTLINED = re.compile(r"<__aarch64_(\w+?)[1248]_(\w+)")


def output(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def compile_sources(source: Path, way: Way, library: Path) -> None:
    # -nostdlib: what is not defined in the library stays undefined; nobody runs it.
    output(PREFIX + "gcc", *way.flags, "-std=c11", "-O2", "-g", "-fPIC", "-shared", "-nostdlib", "-D_GNU_SOURCE=",
           '-DRINGBUF_VERSION_STRING=""', f"-I{source}", f"-I{source.parent / 'include'}", "-o", str(library),
           *sorted(str(path) for path in [*source.glob("*.c"), *source.glob("platform/*.c")] if path.name != "points.c"))


def atomic_instructions(library: Path) -> Iterator[tuple[str, str]]:
    """Address and name of each."""
    for line in output(PREFIX + "objdump", "-d", "--no-show-raw-insn", str(library)).splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)
        if not match:
            continue
        address, name, operands = match.groups()
        if name == "bl" and (outlined := OUTLINED.search(operands)):
            yield address, f"{outlined[1]}_{outlined[2]}"
        elif ATOMIC.fullmatch(name):
            # With the zero register as its result an addition has no acquire.
            yield address, name + ("!" if name.startswith("ldadd") and re.match(r"\w+, [wx]zr,", operands) else "")


def calls_at(library: Path, addresses: list[str]) -> Iterator[list[tuple[str, str, int]]]:
    """For each address the calls that were inlined there, innermost first: function, file, line."""
    lines = output(PREFIX + "addr2line", "-a", "-f", "-i", "-e", str(library), text="\n".join(addresses) + "\n").splitlines()
    chain: list[tuple[str, str, int]] = []
    index = 1
    while index < len(lines):
        if lines[index].startswith("0x"):
            yield chain
            chain = []
            index += 1
            continue
        path, _, number = lines[index + 1].split(" ")[0].rpartition(":")
        chain.append((lines[index], Path(path).name, int(number) if number.isdigit() else 0))
        index += 2
    yield chain


def find_instructions(source: Path, way: Way, sites: list[Site], directory: Path) -> list[str]:
    library = directory / "library.so"
    compile_sources(source, way, library)
    instructions = list(atomic_instructions(library))
    found: defaultdict[tuple[str, int, str], set[str]] = defaultdict(set)
    for (_, name), chain in zip(instructions, calls_at(library, [address for address, _ in instructions]), strict=True):
        operation = ""
        for function, file, line in chain:
            if file != "atomics.h":
                found[file, line, operation].add(name)
                break
            operation = re.sub(r"^rbi_|(32|64)$", "", function)
    wrong = []
    for site in sites:
        if "relaxed" in site.operation or site.operation == "own_add":
            continue
        site.found[way.name] = found[site.file, site.line, site.operation]
        if not site.found[way.name]: # the compiler has made one of several calls that do the same
            for other in sites:
                if (other.function, other.operation, other.address) == (site.function, site.operation, site.address):
                    site.found[way.name] |= found[other.file, other.line, other.operation]
        if site.function in NOT_COMPILED:
            continue
        required, instead = expected(way, site.operation)
        if site.found[way.name] != required and not (instead and site.found[way.name] <= required | instead and site.found[way.name]):
            wrong.append(f"{way.name}: {site.place}: {site.operation} of {site.address} is "
                         f"{' '.join(sorted(site.found[way.name])) or 'no atomic instruction'}, not {' '.join(sorted(required))}")
    return wrong


# ---- the table ----

SIDES = {2: ("from", "to"), 4: ("one writes", "and looks", "other writes", "and looks")}


def table(sites: list[Site], ways: list[Way]) -> Iterator[str]:
    for label, sides in ENDS.items():
        yield f"[{label}]"
        for name, side in zip(SIDES[len(sides)], sides, strict=True):
            for site in (site for end in side for site in sites if site.end == end):
                instructions = "; ".join(" ".join(sorted(site.found[way.name])) for way in ways)
                yield f"  {name:12} {site.place:42} {site.operation:14} {instructions}"


def check(source: Path, ways: list[Way]) -> tuple[list[Site], list[str]]:
    sites = list(sites_of(source))
    wrong = check_sources(sites)
    for way in ways:
        with tempfile.TemporaryDirectory() as directory:
            wrong += find_instructions(source, way, sites, Path(directory))
    return sites, wrong


def check_planted(source: Path, ways: list[Way]) -> int:
    """Each planted weakening must be found."""
    missed = 0
    for name, file, old, new, compiled in PLANTED:
        if compiled and not ways:
            print(f"{name}: not tried")
            continue
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory, "c", "src")
            shutil.copytree(source.parent, copy.parent)
            text = re.sub(r" +\\\n", r"\\\n", (copy / file).read_text())
            if text.count(old) != 1:
                raise SystemExit(f"{name}: {file} has {old!r} {text.count(old)} times")
            (copy / file).write_text(text.replace(old, new))
            wrong = check(copy, ways[:1] if compiled else [])[1]
        missed += not wrong
        print(f"{name}: {f'{len(wrong)} found, {wrong[0]}' if wrong else 'NOT FOUND'}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the ordered operations of the library with their AArch64 instructions.")
    parser.add_argument("source", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "c" / "src")
    parser.add_argument("--quiet", action="store_true", help="no table")
    parser.add_argument("--planted", action="store_true", help="show that weakened sources are found")
    arguments = parser.parse_args()
    source: Path = arguments.source.resolve()
    missing = [tool for tool in ("gcc", "objdump", "addr2line") if not shutil.which(PREFIX + tool)]
    ways = [] if missing else list(WAYS)
    if arguments.planted:
        missed = check_planted(source, ways)
    else:
        sites, wrong = check(source, ways)
        missed = len(wrong)
        if not arguments.quiet and ways:
            print("instructions:", "; ".join(way.name for way in ways))
            print("\n".join(table(sites, ways)))
        print("\n".join(wrong + [f"{len(sites)} operations, {sum(bool(site.found) for site in sites)} of them compiled and ordered, "
                                 f"{len(ENDS)} labels, {len(ways)} ways of compiling: {missed} wrong"]))
    if missed:
        return 1
    if missing:
        print(f"skipped: the sources were read, but there is no {PREFIX}{missing[0]} to compile them with")
        return SKIP
    return 0


if __name__ == "__main__":
    sys.exit(main())
