"""Planted bugs, each of which the explorer must catch.

Each mutation is a change of text in c/src that a tired author could make.  It is compiled with the explorer in place of the real file, and a
scenario is explored that must fail.  A text that is not in the source any more, or a mutation that is not caught, is a failure.

    python3 mutations.py --objects OBJECTS --cc CC [--only NAME]... [--list] [--jobs N] -- COMPILER FLAGS
"""

import argparse
import concurrent.futures
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "c" / "src"


class Mutation(NamedTuple):
    name: str
    file: str
    changes: list[tuple[str, str]]
    scenario: str
    bounds: str


MUTATIONS = [
    # ---- order of steps ----
    Mutation(
        "the payload is written after the publish",
        "put.c",
        [
            ("        memcpy(record.payload, call->parts->data, call->size);\n", ""),
            ("    rbi_count_put(rb, call->size);\n    rbi_wake_items", "    if (!call->run && call->count == 1) memcpy(record.payload, "
             "call->parts->data, call->size);\n    rbi_count_put(rb, call->size);\n    rbi_wake_items"),
        ],
        "one to one", "1,0,0,0",
    ),
    Mutation(
        "a get releases before it copies",
        "take.c",
        [
            ("        if (*size) rbi_copy(buffer, bytes_of(&taken), *size);\n        RBI_POINT(copied);\n        status = finish(rb, &taken);\n",
             "        status = finish(rb, &taken);\n        if (*size) rbi_copy(buffer, bytes_of(&taken), *size);\n"),
        ],
        "a ring of one, thrice", "2,0,0,0",
    ),
    Mutation(
        "a claim does not ask whether the cells were reclaimed",
        "ring.c",
        [("    return used >= 0 && (uint64_t)used + cells < cells_of_ring(ring);", "    return used >= 0 && cells < cells_of_ring(ring);")],
        "a ring of one", "2,0,0,0",
    ),
    Mutation(
        "tail is not read again after the word",
        "ring.c",
        [("        if (rbi_load_total64(&lane->cursors->tail) != tail) continue; /* `word` may be of a later lap: see", "        /* see")],
        "lapped", "2,0,0,0",
    ),
    Mutation(
        "a record is released twice",
        "ring.c",
        [
            ("                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));\n    RBI_POINT(released);",
             "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));\n    RBI_POINT(released);\n"
             "    rbi_store_total64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,\n"
             "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));"),
        ],
        "a ring of one, thrice", "2,0,0,0",
    ),
    Mutation(
        "a run's first block is freed first",
        "arena.c",
        [
            ("    uint64_t freed = free_word(pages, now_s);\n",
             "    uint64_t freed = free_word(pages, now_s);\n    rbi_store_release64(&arena->table[first], freed);\n"),
            ("    rbi_store_release64(&arena->table[first], freed);\n    RBI_POINT(run_freed);", "    RBI_POINT(run_freed);"),
        ],
        "large, a small arena", "2,1,0,0",
    ),
    Mutation(
        "a get is counted after the release",
        "take.c",
        [
            ("    count_get(rb, size_of(taken));\n    if (taken->in_arena) {", "    if (taken->in_arena) {"),
            ("    rbi_ring_release(&rb->ring, &taken->record);\n    return RINGBUF_OK;\n}\n\n/** The same, and wake",
             "    rbi_ring_release(&rb->ring, &taken->record);\n    count_get(rb, size_of(taken));\n    return RINGBUF_OK;\n}\n\n/** The same, and wake"),
        ],
        "tasks, one waits", "2,0,0,0",
    ),
    # ---- looks that are missing ----
    Mutation(
        "no second look before sleeping",
        "waiting.c",
        [("    ringbuf_status status = waiting->attempt(rb, call);\n    if (status != RINGBUF_E_TIMEOUT) return status;\n    if (rbi_handle_is_closed",
          "    ringbuf_status status;\n    if (rbi_handle_is_closed")],
        "one to one", "1,0,0,0",
    ),
    Mutation(
        "the hint is not looked at again before a take",
        "ring.c",
        [("            if (rbi_load_total64(&ring->order->returned) != hint) continue;   /* [T6] an older one first */\n", "")],
        "published late", "3,0,0,0",
    ),
    Mutation(
        "the hint is cleared also if it was set anew",
        "ring.c",
        [("    rbi_cas_total64(&ring->order->returned, seen, seen & ~UINT64_C(1)); /* [T6]",
          "    rbi_store_total64(&ring->order->returned, seen & ~UINT64_C(1)); /* [T6]")],
        "given back twice", "2,0,0,0",
    ),
    Mutation(
        "what stands at head is not looked for",
        "ring.c",
        [("     * the hint, and head would then go past it for good. */\n    help_head(ring, lane);\n",
          "     * the hint, and head would then go past it for good. */\n")],
        "two producers", "2,0,0,0",
    ),
    Mutation(
        "the epoch is not looked at again before a take",
        "ring.c",
        [("            if (rbi_load_total64(&ring->order->get_epoch) != epoch) continue; /* [T7] it may be of a later epoch */\n", "")],
        "a lane opened again", "1,0,0,4",
    ),
    Mutation(
        "shutdown is looked at before the claim only",
        "put.c",
        [
            ("    ringbuf_status status = rbi_claim(rb, &record, ring_bytes(call));\n    uint32_t shutdown = rbi_shutdown_of(rb);\n",
             "    uint32_t shutdown = rbi_shutdown_of(rb);\n    ringbuf_status status = rbi_claim(rb, &record, ring_bytes(call));\n"),
        ],
        "shutdown and drained", "2,0,0,0",
    ),
    Mutation(
        "a taker does not look whether what it has found is still the same",
        "ring.c",
        [("        if (load_word(ring, lane, position) != word) return RBI_RING_EMPTY; /* so the size was another record's */\n", "")],
        "two sizes", "2,0,0,0",
    ),
    # ---- wakes and hints that are missing ----
    Mutation(
        "a put wakes nobody",
        "put.c",
        [("    rbi_wake_items(rb);\n    RBI_POINT(put_woke);", "    RBI_POINT(put_woke);")],
        "one to one", "1,0,0,0",
    ),
    Mutation(
        "a wake does not change the word",
        "wait.c",
        [("(seen + ONE_WAKE) & ~(uint32_t)RBI_WAITERS)) continue;", "seen & ~(uint32_t)RBI_WAITERS)) continue;"),
         ("        if (!rbi_cas_total32(&event->word, seen, seen & ~(uint32_t)RBI_WAITERS)) continue;",
          "        if (!rbi_cas_total32(&event->word, seen, seen)) continue;")],
        "two consumers", "2,0,0,0",
    ),
    Mutation(
        "who leaves passes no wake on",
        "waiting.c",
        [("        if (waiting->more && waiting->more(rb)) rbi_event_wake_one(waiting->event);\n", "")],
        "two and two, a batch", "1,0,0,0",
    ),
    Mutation(
        "who leaves does not say that others may sleep",
        "waiting.c",
        [("        if (waiting->more) rbi_event_leave(waiting->event);\n", "")],
        "two consumers", "2,0,0,0",
    ),
    Mutation(
        "who passes a wake on does not change the word",
        "waiting.c",
        [("rbi_event_wake_one(waiting->event);\n    }", "rbi_futex_wake(&waiting->event->word, 1);\n    }")],
        "lane change beside others", "2,0,0,2",
    ),
    Mutation(
        "what is published late sets no hint",
        "ring.c",
        [("    RBI_POINT(published_late);\n    rbi_ring_set_returned(ring);\n", "    RBI_POINT(published_late);\n")],
        "two producers", "2,0,0,0",
    ),
    Mutation(
        "what is given back sets no hint",
        "ring.c",
        [("    RBI_POINT(given_back);\n    rbi_ring_set_returned(ring);\n", "    RBI_POINT(given_back);\n")],
        "given back", "1,0,0,0",
    ),
    Mutation(
        "recovery sets no hint",
        "ring.c",
        [("    if (recovery.some_returned) rbi_ring_set_returned(ring);\n    RBI_POINT(recovery_hinted);", "    RBI_POINT(recovery_hinted);")],
        "a death", "1,1,0,0",
    ),
    Mutation(
        "recovery wakes no consumer",
        "registry.c",
        [("    rbi_event_wake_all(&registry->header->items);\n", "")],
        "a death found by a third", "1,1,0,0",
    ),
    Mutation(
        "a freed run wakes nobody",
        "put.c",
        [("(uint64_t)now_ns / 1000000000);\n    rbi_wake_for_room(rb);\n", "(uint64_t)now_ns / 1000000000);\n")],
        "large, a small arena", "2,0,0,0",
    ),
    Mutation(
        "close wakes nobody",
        "segment.c",
        [("        wake_everybody(rb);\n        int64_t give_up_ns", "        int64_t give_up_ns")],
        "close under a sleeper", "1,0,0,0",
    ),
    Mutation(
        "a put that finds the queue shut down does not wake who waits for its claim",
        "put.c",
        [("        rbi_event_wake_all(&rb->header->items); /* a drainer may wait for our claim */\n", "")],
        "shutdown and drained", "2,0,0,0",
    ),
    # ---- recovery ----
    Mutation(
        "a get that waits answers that it has timed out, after a shutdown and a death",
        "take.c",
        [("    while (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) {", "    if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) do {"),
         ("wait for it */\n    }\n", "wait for it */\n    } while (false);\n")],
        "shutdown", "3,1,0,0",
    ),
    Mutation(
        "a dead one's number is free before its records are",
        "registry.c",
        [("    RBI_POINT(recovery_locked);\n    ringbuf_status status = undo(registry, number, false);\n",
          "    RBI_POINT(recovery_locked);\n    rbi_store_total32(&registry->entries[number - 1].state, ENTRY_FREE);\n"
          "    ringbuf_status status = undo(registry, number, false);\n")],
        "recovery dies", "1,2,0,0",
    ),
    Mutation(
        "recovery does not look at the record at tail",
        "ring.c",
        [("        help_tail(ring, lane, position, word);\n    }\n    RBI_POINT(recovery_tail_helped);", "        break;\n    }\n    RBI_POINT(recovery_tail_helped);")],
        "a death", "1,1,0,0",
    ),
    Mutation(
        "recovery does the ring before the arena",
        "registry.c",
        [("    enum rbi_arena_outcome arena = rbi_arena_recover(registry->arena, registry->ring, number, keep, now_s);\n"
          "    enum rbi_ring_outcome ring = rbi_ring_recover(registry->ring, number);\n",
          "    enum rbi_ring_outcome ring = rbi_ring_recover(registry->ring, number);\n"
          "    enum rbi_arena_outcome arena = rbi_arena_recover(registry->arena, registry->ring, number, keep, now_s);\n")],
        "large, with a death", "1,1,0,0",
    ),
    Mutation(
        "a lease's run is the message's before its record is released",
        "arena.c",
        [("    if (fate != RBI_KIND_TAKEN || taker != recovery->owner) {", "    if (true) {")],
        "large, with a death", "1,1,0,0",
    ),
    Mutation(
        "a death in the middle of a get loses the message",
        "ring.c",
        [("        rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_with(word, 0, RBI_KIND_RETURNED));\n        RBI_POINT(recovery_returned);",
          "        rbi_cas_total64(&slot_at(ring, lane, position)->word, word, word_with(word, 0, RBI_KIND_RELEASED));\n        RBI_POINT(recovery_returned);")],
        "taken, with a death", "1,1,0,0",
    ),
    Mutation(
        "of several deaths in one look only the last is completed",
        "registry.c",
        [("            dead->numbers[number / 64] |= UINT64_C(1) << number % 64;\n", "            dead->numbers[number / 64] = UINT64_C(1) << number % 64;\n")],
        "two deaths, one look", "0,1,0,0",
    ),
    # ---- looks after the dead ----
    Mutation(
        "the claim of a look is for ever",
        "registry.c",
        [("rbi_cas_acq_rel64(&registry->header->watch.looked_ns, seen_ns, now_ns)", "rbi_cas_acq_rel64(&registry->header->watch.looked_ns, seen_ns, UINT64_MAX)"),
         ("    return now_ns > last_ns ? now_ns - last_ns : 0;\n", "    return now_ns > *seen_ns ? now_ns - *seen_ns : 0;\n"),
         ("    return now_ns > own_ns && now_ns - own_ns >= period", "    return false && now_ns - own_ns >= period")],
        "the one that looks dies", "0,1,0,0",
    ),
    Mutation(
        "a waiter that finds the look claimed never wakes up by itself again",
        "registry.c",
        [("    if (age < period) rest *= 2;\n", "    if (age < period) { rbi_store_relaxed64(&vigil->wakes_ns, INT64_MAX); return status; }\n")],
        "the one that looks dies", "0,1,0,0",
    ),
    Mutation(
        "a waiter leaves every look to others",
        "registry.c",
        [("    if (age < period_of(registry, occasion) && ", "    if (occasion == RBI_WAITING || age < period_of(registry, occasion) && ")],
        "a look", "0,0,0,0",
    ),
    Mutation(
        "who leaves and gives something back wakes nobody",
        "registry.c",
        [("    if (status != RINGBUF_OK || registry->ring->undone || registry->arena->undone) wake_every_sleeper(registry);\n", "    (void)status;\n")],
        "left with a message", "1,0,0,0",
    ),
    Mutation(
        "a ring that returned something says that there was nothing to undo",
        "ring.c",
        [("    ring->undone = recovery.undone || recovery.some_returned;\n", "    ring->undone = false;\n")],
        "left with a message", "1,0,0,0",
    ),
    # ---- the turn at the arena ----
    Mutation(
        "a put that has had its turn does not end it",
        "put.c",
        [("    rbi_turn_end(rb, &wait, status);\n", "")],
        "a turn", "0,0,0,3",
    ),
    Mutation(
        "the owner of the turn does not look into its own window",
        "turn.c",
        [("    return is_mine(rb, wait, window) || rbi_window_blocks", "    (void)wait;\n    return rbi_window_blocks")],
        "a turn", "0,0,0,3",
    ),
    Mutation(
        "recovery does not end the dead one's turn",
        "registry.c",
        [("    end_turn(registry->header, number); /* before the wake: what it set aside is there for all */\n", "")],
        "a turn whose owner dies", "0,1,0,2",
    ),
    Mutation(
        "two batches wake each other for ever",
        "batch.c",
        [("    if (call->next_ns <= rbi_monotonic_ns() || room_for_runs(rb, call)) status", "    status")],
        "two batches beside a message", "0,0,0,0",
    ),
    # ---- counting ----
    Mutation(
        "what is given back is not irregular",
        "ring.c",
        [("    mark_irregular(ring, lane, record->position, record->cells);\n    RBI_POINT(nack_marked);", "    RBI_POINT(nack_marked);")],
        "given back", "2,0,0,0",
    ),
    Mutation(
        "done is read after what was got",
        "queue.c",
        [("    uint64_t done = rbi_registry_done(&rb->registry); /* [T4 tasks] done, ring, got: in this order */\n", ""),
         ("    *tasks = (int64_t)(waiting + rbi_registry_gets_owed(&rb->registry) - done);",
          "    uint64_t got = rbi_registry_gets_owed(&rb->registry);\n    *tasks = (int64_t)(waiting + got - rbi_registry_done(&rb->registry));")],
        "tasks in disorder", "2,0,0,0",
    ),
    # ---- where pages end ----
    Mutation(
        "a lap is cut short although something is in it",
        "ring.c",
        [("    if (load_reclaim(ring, lane) != position) return otherwise;\n", "")],
        "a short lap and no waiting", "2,0,0,0",
    ),
    Mutation(
        "a gap counts as an item",
        "ring.c",
        [("    return word_kind(word) >= RBI_KIND_END ? past", "    return word_kind(word) == RBI_KIND_END ? past")],
        "a short lap and no waiting", "2,0,0,0",
    ),
    Mutation(
        "head goes past a gap before tail does",
        "ring.c",
        [("    if (word_kind(word) == RBI_KIND_GAP) help_tail(ring, lane, position_of(ring, head), word); /* head must not pass tail */\n", "")],
        "a short lap, a gap only", "2,0,0,0",
    ),
    Mutation(
        "reclaim goes past a gap before head does",
        "ring.c",
        [("        if (position_of(ring, head) == position) pass_at_head", "        if (position_of(ring, head) == position && word_kind(word) != RBI_KIND_GAP) pass_at_head")],
        "a short lap", "2,0,0,0",
    ),
    Mutation(
        "a gap is put over what another one has claimed",
        "ring.c",
        [("    if (!rbi_cas_total64(&slot_at(ring, lane, position)->word, word, gap)) return; /* another one was quicker */\n",
          "    if (word == gap) return;\n    rbi_store_total64(&slot_at(ring, lane, position)->word, gap);\n")],
        "a short lap, two producers", "2,0,0,0",
    ),
    Mutation(
        "a gap is put where there is no page",
        "ring.c",
        [("    *wanted = index + cells < all ? index + cells + 1 : all;\n    if (index >= reserved) return RBI_RING_UNRESERVED;\n",
          "    *wanted = index + cells < all ? index + cells : all;\n")],
        "a short lap", "1,0,0,0",
    ),
    Mutation(
        "a gap is nothing that a take goes past",
        "ring.c",
        [("        case RBI_KIND_GAP:\n            pass_at_head(ring, lane, head, word);", "            pass_at_head(ring, lane, head, word);\n"
          "            if (kind == RBI_KIND_TAKEN) back_off(ring);\n            continue;\n        case RBI_KIND_GAP:\n            return RBI_RING_EMPTY;")],
        "a short lap, asked for room", "2,0,0,0",
    ),
    Mutation(
        "nothing is done with the pages there are when there are no more",
        "ring.c",
        [("            begin_again(ring, lane, tail, word);\n            return true;\n", "            return false;\n")],
        "no pages", "1,0,0,0",
    ),
    Mutation(
        "where there are no more pages, room in front is not asked for",
        "ring.c",
        [("        if (room == RBI_RING_OK || load_reclaim(ring, lane) == position) {", "        if (true) {")],
        "no pages, two producers", "2,0,0,0",
    ),
    # ---- orders that are weakened ----
    Mutation(
        "[E1] [E11] the publish and the size are relaxed",
        "ring.c",
        [("    if (rbi_cas_total64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))) {",
          "    if (rbi_load_relaxed64(&slot->word) == claimed) {\n        rbi_store_relaxed64(&slot->word, word_with(claimed, 0, RBI_KIND_READY));"),
         ("    rbi_store_release64(&slot->size, record->size | (record->reference", "    rbi_store_relaxed64(&slot->size, record->size | (record->reference")],
        "one to one", "1,0,0,0",
    ),
    Mutation(
        "[E2] the release is relaxed",
        "ring.c",
        [("    rbi_store_total64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,\n"
          "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));",
          "    rbi_store_relaxed64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,\n"
          "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));")],
        "a ring of one, thrice", "2,0,0,0",
    ),
    Mutation(
        "[E7] freeing is relaxed",
        "arena.c",
        [("        rbi_store_release64(&arena->table[block], freed);", "        rbi_store_relaxed64(&arena->table[block], freed);"),
         ("    rbi_store_release64(&arena->table[first], freed);", "    rbi_store_relaxed64(&arena->table[first], freed);")],
        "large, a small arena", "2,0,0,0",
    ),
    Mutation(
        "[E10] a freer only reads the event word",
        "wait.c",
        [("    uint32_t word = rbi_add_total32(&event->word, 0);", "    uint32_t word = rbi_load_total32(&event->word);")],
        "stale: a small arena", "1,0,1,0",
    ),
    Mutation(
        "[T1] the publish is not in the total order",
        "ring.c",
        [("    if (rbi_cas_total64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))) {",
          "    if (rbi_cas_acq_rel64(&slot->word, claimed, word_with(claimed, 0, RBI_KIND_READY))) {")],
        "stale: one to one", "1,0,4,0",
    ),
    Mutation(
        "[T2] the release is not in the total order",
        "ring.c",
        [("    rbi_store_total64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,\n"
          "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));",
          "    rbi_store_release64(&slot_at(ring, &ring->lanes[record->lane], record->position)->word,\n"
          "                      word_of(ring, record->position, record->cells, 0, RBI_KIND_RELEASED));")],
        "stale: one to one", "2,0,1,0",
    ),
    Mutation(
        "[T6] the hint is not in the total order",
        "ring.c",
        [("        if (rbi_cas_total64(&ring->order->returned, seen, ((seen >> 1) + 1) << 1 | 1)) break;",
          "        if (rbi_cas_acq_rel64(&ring->order->returned, seen, ((seen >> 1) + 1) << 1 | 1)) break;")],
        "stale: published late", "3,0,2,0",
    ),
    # ---- descriptors ----
    Mutation(
        "who has settled does not look at the ring again",
        "ready.c",
        [("    return would_not_wait(rb) == up && ", "    return ")],
        "descriptor", "1,0,0,0",
    ),
    Mutation(
        "who leaves the descriptors does not look what is to be done",
        "ready.c",
        [("        } else if (rbi_cas_total32(&rb->telling, seen, 0)) {", "        } else if (rbi_store_total32(&rb->telling, 0), true) {")],
        "a put meets another thread at the descriptor", "2,0,0,0",
    ),
    Mutation(
        "what is to be done is cleared after it was done",
        "ready.c",
        [("            if (rbi_cas_total32(&rb->telling, seen, seen & ~(uint32_t)TO_DO)) do_all(rb, seen & TO_DO);",
          "            do_all(rb, seen & TO_DO);\n            rbi_store_total32(&rb->telling, HELD);")],
        "a put meets another thread at the descriptor", "2,0,0,0",
    ),
    Mutation(
        "who finds another thread at the descriptors asks for nothing",
        "ready.c",
        [("        if (!rbi_cas_total32(&rb->telling, seen, seen | HELD | what)) continue;",
          "        if (seen & HELD) return;\n        if (!rbi_cas_total32(&rb->telling, seen, seen | HELD | what)) continue;")],
        "a put meets another thread at the descriptor", "2,0,0,0",
    ),
]


def mutated(mutation: Mutation) -> str:
    text = (SOURCES / mutation.file).read_text()
    for old, new in mutation.changes:
        if text.count(old) != 1:
            raise SystemExit(f"mutation {mutation.name!r}: its text is in {mutation.file} {text.count(old)} times, not once:\n{old}")
        text = text.replace(old, new)
    return text


def run(mutation: Mutation, cc: str, objects: list[str], flags: list[str]) -> tuple[bool, str]:
    """Whether it was caught, and how."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target, program = (f"{scratch}/{name}" for name in (mutation.file, "mutated.o", "model"))
        pathlib.Path(source).write_text(mutated(mutation))
        subprocess.run([cc, *flags, "-w", "-I", str(SOURCES), "-c", source, "-o", target], check=True)
        others = [name for name in objects if not re.search(rf"(^|/){re.escape(mutation.file)}\.o$", name)]
        if len(others) != len(objects) - 1:
            raise SystemExit(f"no object of {mutation.file} among {objects}")
        subprocess.run([cc, *others, target, "-lpthread", "-o", program], check=True)
        done = subprocess.run(
            [program, "--only", mutation.scenario, "--bounds", mutation.bounds, "--seconds", "60"], capture_output=True, text=True, timeout=300
        )
    how = " ".join(line.strip() for line in done.stdout.splitlines()[1:3])
    return done.returncode == 1, how or done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cc", default="cc")
    parser.add_argument("--objects", default="", help="all objects of the explorer, separated by |")
    parser.add_argument("--only", action="append", help="a mutation's name")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("flags", nargs="*")
    wish = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if not wish.only or mutation.name in wish.only]
    if wish.list:
        print("\n".join(mutation.name for mutation in chosen))
        return 0
    missed = 0
    with concurrent.futures.ThreadPoolExecutor(wish.jobs) as pool:
        runs = [pool.submit(run, mutation, wish.cc, wish.objects.split("|"), wish.flags) for mutation in chosen]
        for mutation, result in zip(chosen, runs):
            caught, how = result.result()
            missed += not caught
            print(f"{'caught' if caught else 'NOT CAUGHT'}: {mutation.name} ({mutation.file}, {mutation.scenario!r})\n    {how}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} planted bugs caught")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
