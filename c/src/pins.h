/* pins.h — floor 2: which messages are kept and which reservations are open through a handle, as this process alone knows it.
 *
 * Each of them keeps the queue's memory mapped, also after the handle was closed and freed.  So what ends one must prove that it
 * is one: shared memory cannot tell (the handle may be closed, the token may be of a parent process, anybody may have written
 * there). pins.c opens with how it works. */
#ifndef RBI_PINS_H
#define RBI_PINS_H

#include "atomics.h"
#include "platform.h"

/** What a token says.  Two tokens are never equal as long as both are open: see ringbuf_message and ringbuf_reservation. */
struct rbi_token {
    uint64_t position, ticket, generation;
    uint32_t turn;
};

/** A place for an open token. */
struct rbi_pin_slot {
    rbi_atomic64 state;          /* { how often it was used : 62 | 0 free, 1 being filled, 2 open } */
    rbi_atomic64 position, ticket, generation, turn;
};

/** More places, when those before are all in use. */
struct rbi_pin_chunk {
    rbi_atomic64 next;           /* a struct rbi_pin_chunk *, or 0; stays for as long as the handle */
    uint64_t count;
    struct rbi_pin_slot slots[];
};

enum { RBI_PIN_SLOTS = 15 };

/** The tokens of a handle. */
struct rbi_pins {
    rbi_atomic64 next;           /* as in a chunk */
    rbi_atomic32 plain;          /* ringbuf_pin() without its ringbuf_unpin() */
    struct rbi_pin_slot slots[RBI_PIN_SLOTS];
};

/** Note that this token is open.  RINGBUF_OK or RINGBUF_E_NO_MEMORY. */
ringbuf_status rbi_pins_add(struct rbi_pins *pins, const struct rbi_token *token);

/** Whether it is open. */
bool rbi_pins_has(const struct rbi_pins *pins, const struct rbi_token *token);

/** It is over.  Returns whether it was open: of several that end the same one, one learns that it was. */
bool rbi_pins_end(struct rbi_pins *pins, const struct rbi_token *token);

/** The same for ringbuf_pin() and ringbuf_unpin(), which have no token. */
void rbi_pins_add_plain(struct rbi_pins *pins);
bool rbi_pins_end_plain(struct rbi_pins *pins);

/** How many there are.  Exact when nobody is in a call. */
uint32_t rbi_pins_count(const struct rbi_pins *pins);

/** Give back the memory. */
void rbi_pins_free(struct rbi_pins *pins);

#endif
