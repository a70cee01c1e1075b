/* pins.c — floor 2: see pins.h.
 *
 * A slot goes free -> being filled -> open -> free, each by one compare-and-swap on its state, which counts up each time it
 * becomes free. Who looks for a token reads the state, compares the fields, and ends the token by a CAS from the state that it
 * has read: if that succeeds, the fields were this token's all the time, for they change only while the state says "being
 * filled".  Of several that end the same token one succeeds.  A slot that was passed over because it was being filled is of a
 * token that its owner has not been given yet.
 *
 * No lock, so that a call from a signal handler never meets one that the interrupted program holds, and so that a forked child
 * finds nothing locked.  What another thread was filling when the child was forked stays "being filled" in the child: a slot
 * less.  New slots come in chunks of twice as many each time, from the system and not from malloc (which a signal handler must
 * not call), and stay until the handle is freed.
 *
 * The search begins where the token's position would put it, and ends at the first slot that holds it; only one that does not
 * exist is looked for everywhere.
 *
 * Orders: these words are private to the process.  A token that one thread hands to another comes with an order of the program's
 * own; acquire and release here order fields and state. */
#include "pins.h"

enum { FREE = 0, FILLING = 1, OPEN = 2, STATES = 4 };

static inline uint64_t state_of(uint64_t word) { return word & (STATES - 1); }

static struct rbi_pin_chunk *chunk_of(uint64_t address) { return (struct rbi_pin_chunk *)(uintptr_t)address; }

static inline uint64_t start_of(const struct rbi_token *token, uint64_t count)
{
    return (token->position * UINT64_C(0x9e3779b97f4a7c15) >> 32) % count;
}

/** Fill a slot that is free.  NULL: none of these is. */
static struct rbi_pin_slot *fill_one(struct rbi_pin_slot *slots, uint64_t count, const struct rbi_token *token)
{
    for (uint64_t i = 0, at = start_of(token, count); i < count; i++, at = at + 1 < count ? at + 1 : 0) {
        struct rbi_pin_slot *slot = &slots[at];
        uint64_t seen = rbi_load_relaxed64(&slot->state); /* relaxed: the CAS decides */
        if (state_of(seen) != FREE || !rbi_cas_acq_rel64(&slot->state, seen, seen + FILLING)) continue;
        /* relaxed: the state that follows hands them on */
        rbi_store_relaxed64(&slot->position, token->position);
        rbi_store_relaxed64(&slot->ticket, token->ticket);
        rbi_store_relaxed64(&slot->generation, token->generation);
        rbi_store_relaxed64(&slot->turn, token->turn);
        rbi_store_release64(&slot->state, seen + OPEN); /* release: who sees it open sees the fields */
        return slot;
    }
    return NULL;
}

/** The slot of these that holds the token, and its state.  NULL: none. */
static struct rbi_pin_slot *find_one(const struct rbi_pin_slot *slots, uint64_t count, const struct rbi_token *token, uint64_t *state)
{
    for (uint64_t i = 0, at = start_of(token, count); i < count; i++, at = at + 1 < count ? at + 1 : 0) {
        const struct rbi_pin_slot *slot = &slots[at];
        *state = rbi_load_acquire64(&slot->state); /* acquire: the fields are of this state, or the CAS that follows fails */
        if (state_of(*state) == OPEN && rbi_load_relaxed64(&slot->position) == token->position &&
            rbi_load_relaxed64(&slot->ticket) == token->ticket && rbi_load_relaxed64(&slot->generation) == token->generation &&
            rbi_load_relaxed64(&slot->turn) == token->turn)
            return (struct rbi_pin_slot *)(uintptr_t)slot;
    }
    return NULL;
}

static struct rbi_pin_slot *find(const struct rbi_pins *pins, const struct rbi_token *token, uint64_t *state)
{
    struct rbi_pin_slot *slot = find_one(pins->slots, RBI_PIN_SLOTS, token, state);
    for (uint64_t next = rbi_load_acquire64(&pins->next); !slot && next; next = rbi_load_acquire64(&chunk_of(next)->next))
        slot = find_one(chunk_of(next)->slots, chunk_of(next)->count, token, state);
    return slot;
}

/** Have one more chunk behind this word, which said that there is none. */
static bool grow(rbi_atomic64 *next, uint64_t count)
{
    uint64_t bytes = sizeof(struct rbi_pin_chunk) + count * sizeof(struct rbi_pin_slot);
    struct rbi_pin_chunk *made = rbi_memory(bytes); /* zeros: all slots are free */
    if (!made) return false;
    made->count = count;
    if (!rbi_cas_acq_rel64(next, 0, (uint64_t)(uintptr_t)made)) rbi_memory_free(made, bytes); /* another thread was quicker */
    return true;
}

ringbuf_status rbi_pins_add(struct rbi_pins *pins, const struct rbi_token *token)
{
    if (fill_one(pins->slots, RBI_PIN_SLOTS, token)) return RINGBUF_OK;
    rbi_atomic64 *next = &pins->next;
    uint64_t count = RBI_PIN_SLOTS;
    for (;;) {
        uint64_t address = rbi_load_acquire64(next); /* acquire: what grow() wrote into it */
        if (!address) {
            if (!grow(next, 2 * count + 16)) return RINGBUF_E_NO_MEMORY;
            continue;
        }
        struct rbi_pin_chunk *chunk = chunk_of(address);
        if (fill_one(chunk->slots, chunk->count, token)) return RINGBUF_OK;
        count = chunk->count;
        next = &chunk->next;
    }
}

bool rbi_pins_has(const struct rbi_pins *pins, const struct rbi_token *token)
{
    uint64_t state;
    return find(pins, token, &state) != NULL;
}

bool rbi_pins_end(struct rbi_pins *pins, const struct rbi_token *token)
{
    uint64_t state;
    struct rbi_pin_slot *slot = find(pins, token, &state);
    return slot && rbi_cas_acq_rel64(&slot->state, state, state - OPEN + STATES);
}

void rbi_pins_add_plain(struct rbi_pins *pins) { rbi_add_total32(&pins->plain, 1); }

bool rbi_pins_end_plain(struct rbi_pins *pins)
{
    for (;;) {
        uint32_t seen = rbi_load_total32(&pins->plain);
        if (seen == 0) return false;
        if (rbi_cas_total32(&pins->plain, seen, seen - 1)) return true;
    }
}

static uint32_t count_open(const struct rbi_pin_slot *slots, uint64_t count)
{
    uint32_t open = 0;
    for (uint64_t i = 0; i < count; i++) open += state_of(rbi_load_acquire64(&slots[i].state)) == OPEN;
    return open;
}

uint32_t rbi_pins_count(const struct rbi_pins *pins)
{
    uint32_t open = rbi_load_total32(&pins->plain) + count_open(pins->slots, RBI_PIN_SLOTS);
    for (uint64_t next = rbi_load_acquire64(&pins->next); next; next = rbi_load_acquire64(&chunk_of(next)->next))
        open += count_open(chunk_of(next)->slots, chunk_of(next)->count);
    return open;
}

void rbi_pins_free(struct rbi_pins *pins)
{
    for (uint64_t next = rbi_load_acquire64(&pins->next), after; next; next = after) {
        struct rbi_pin_chunk *chunk = chunk_of(next);
        after = rbi_load_acquire64(&chunk->next);
        rbi_memory_free(chunk, sizeof *chunk + chunk->count * sizeof(struct rbi_pin_slot));
    }
}
