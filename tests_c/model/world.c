/* world.c — see world.h.  Everything is done through the public calls of ringbuf.h; only the handles are made here, for a file is not wanted
 * and the rings are smaller than ringbuf_create() makes them.
 *
 * The accounts.  Each put is an item, with the steps at which its call began and ended; each delivery likewise.  At the end of an execution the
 * main handle, which is no process, cleans up, takes all that is left, and judges:
 *   an item whose put was answered was delivered once, or is missing because one who was about to get something died;
 *   one whose put was not answered at most once; one whose put was refused never; nothing was delivered twice;
 *   of two items, the put of the one wholly before the other's, not the younger delivered wholly before the older began to be
 *   (but for items that were given back, or in hands of one who died);
 *   "empty" was said only if not all through the call an item was there, and "full" (of a queue with max_items) only if not all
 *   through the call there was room;
 *   no word has an owner; the arena is whole and free; the counters are right; the ring takes as many messages as ever. */
#define _GNU_SOURCE
#include "world.h"

#include "calls.h"
#include "platform_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MAIN = MODEL_PROCESSES,      /* the number of the main handle */
    HANDLES = MODEL_PROCESSES + 1,
    CELL_LOG2 = 10,
    BLOCK_LOG2 = 8,
    BLOCKS = 64,
    RING_LIMIT = 1200,
    SMALL_BYTES = 24, WIDE_BYTES = 1100, LARGE_BYTES = 1300,
    PER_PROCESS = 24,            /* items by one */
    ITEMS = (MODEL_PROCESSES + 1) * PER_PROCESS,
    DELIVERIES = 64,
    HANDS = 6,
    PATIENCE = 1,
    START_NS = 1000000000,       /* the explorer's clock at the beginning */
    DATA_BYTES = 1 << 16,
};

static const uint64_t never = UINT64_MAX;

/* ---- memory ---- */

static struct segment {
    struct rbi_header header;
    struct rbi_participant entries[HANDLES + 1];
    struct rbi_slot slots[RBI_LANES][16];
    rbi_atomic64 table[BLOCKS];
    struct rbi_run_entry runs[BLOCKS];
} *segment;
static uint8_t *arena_memory;
static uint8_t *data[RBI_LANES];          /* each twice in a row */
static ringbuf *handles, kept_handles[HANDLES];
static const struct scenario *scenario;
static struct rbi_run filler;
static uint32_t dead_number;               /* of the participant that died before the start, if any */
static uint8_t kept_payloads[16][RBI_INLINE_BYTES];

/* ---- accounts ---- */

enum item_state { NEVER, PUTTING, PUT, REFUSED };

struct item {
    enum item_state state;
    uint64_t put_begin, put_end;
    bool in_other_hands;                  /* it was taken and did not stay so */
    uint64_t size;
};

struct delivery {
    int item;                             /* -1: "empty" */
    int process;
    bool shut_down;                       /* it was told that nothing will come any more */
    uint64_t begin, end;
};

static struct accounts {
    struct item items[ITEMS];
    struct delivery deliveries[DELIVERIES];
    int delivery_count;
    struct {
        uint64_t call_begin;
        char call;                        /* what it is in; 0: in none */
        int delivering;                   /* how many items the call may consume without an answer */
        int puts;
        ringbuf_message hands[HANDS];
        int hand_items[HANDS];
        uint64_t hand_begins[HANDS];
        int hand_count;
        ringbuf_message kept[HANDS];
        int kept_items[HANDS];
        int kept_count;
        ringbuf_reservation reservation;
        bool reserved;
        uint64_t outcomes;                /* of its calls so far, as a hash */
        uint64_t gets, done;
        int got_items[PER_PROCESS];
        int got_count, done_begun;
        int items_fd, room_fd;
        bool shut_down, closed, stopped;
    } processes[MODEL_PROCESSES + 1];
    struct {
        uint64_t begin, end;
    } full[16];
    int full_count;
    uint64_t calls_ended;                 /* how many by each, a byte each */
    bool shutdown, shutdown_at_once;
} accounts;

static ringbuf *handle_of(int process)
{
    int of = process < MODEL_PROCESSES ? scenario->thread_of[process] : 0;
    return &handles[of ? of - 1 : process];
}

/* Not on the stacks, which are part of the state. */
static uint64_t buffers[MODEL_PROCESSES + 1][2][LARGE_BYTES / 8 + 1];

/** Whether the process died, by this thread or another of the same. */
static bool is_dead(int process)
{
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++)
        if (handle_of(p) == handle_of(process) && model_is_dead(p)) return true;
    return false;
}

static uint64_t pattern(int item, uint64_t word) { return UINT64_C(0xa5c3000000000000) | (uint64_t)item << 32 | word; }

static void fill(void *buffer, int item, uint64_t size)
{
    for (uint64_t i = 0; i < size / 8; i++) ((uint64_t *)buffer)[i] = pattern(item, i);
    memset((uint8_t *)buffer + size / 8 * 8, item, size % 8);
}

/** Which item these bytes are; all of them must be. */
static int item_in(const void *bytes, uint64_t size)
{
    const uint64_t *word = bytes;
    if (size < 8) model_fail("a message of %lu bytes came that nobody put", size);
    int item = (int)(word[0] >> 32 & 0xffff);
    if (item >= ITEMS || accounts.items[item].state == NEVER || accounts.items[item].size != size)
        model_fail("a message came that nobody put: %lx, %lu bytes", word[0], size);
    for (uint64_t i = 0; i < size / 8; i++)
        if (word[i] != pattern(item, i)) model_fail("item %d is not what was put, at byte %lu: %lx", item, i * 8, word[i]);
    return item;
}

/* ---- a call's beginning and end ---- */

static void begin_call(int me, char call, int delivering)
{
    accounts.processes[me].call = call;
    accounts.processes[me].call_begin = model_now_step();
    accounts.processes[me].delivering = delivering;
    /* The judgement depends on which calls had ended when this one began. */
    model_note(model_mix((uint64_t)me << 56 | accounts.processes[me].outcomes >> 56, accounts.calls_ended));
    if (model_trace) printf("      p%d  calls '%c'\n", me, call);
}

static void end_call(int me, uint64_t outcome)
{
    uint64_t *outcomes = &accounts.processes[me].outcomes;
    uint64_t count = (*outcomes >> 56) + 1;
    *outcomes = (model_mix(*outcomes, outcome) & ((UINT64_C(1) << 56) - 1)) | count << 56;
    accounts.calls_ended += UINT64_C(1) << 8 * me;
    accounts.processes[me].call = 0;
    accounts.processes[me].delivering = 0;
    model_settle(*outcomes);
    if (model_trace) printf("      p%d  its call is answered: %lu\n", me, outcome);
}

static struct delivery *deliver(int me, int item, uint64_t begin)
{
    if (accounts.delivery_count == DELIVERIES) model_fail("too many deliveries");
    struct delivery *delivery = &accounts.deliveries[accounts.delivery_count++];
    *delivery = (struct delivery){.item = item, .process = me, .begin = begin, .end = model_now_step()};
    if (item < 0) return delivery;
    for (struct delivery *other = accounts.deliveries; other < delivery; other++)
        if (other->item == item) model_fail("item %d was delivered twice, to p%d and p%d", item, other->process, me);
    if (accounts.items[item].state == REFUSED) model_fail("item %d was delivered, although its put was refused", item);
    if (accounts.processes[me].got_count < PER_PROCESS) accounts.processes[me].got_items[accounts.processes[me].got_count++] = item;
    return delivery;
}

/* ---- the calls ---- */

static uint64_t size_of_letter(char letter)
{
    switch (letter) {
    case 'w': return WIDE_BYTES;
    case 'P': case 'B': case 'R': return LARGE_BYTES;
    default: return SMALL_BYTES;
    }
}

static int new_item(int me, uint64_t size)
{
    int item = me * PER_PROCESS + accounts.processes[me].puts++;
    accounts.items[item] = (struct item){.state = PUTTING, .put_begin = model_now_step(), .put_end = never, .size = size};
    return item;
}

static void end_put(int item, ringbuf_status status)
{
    accounts.items[item].state = status == RINGBUF_OK ? PUT : REFUSED;
    accounts.items[item].put_end = model_now_step();
}

static void expect(ringbuf_status status, const char *call, bool may_time_out)
{
    if (status == RINGBUF_OK || (may_time_out && (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_ARENA_FULL))) return;
    if (status == RINGBUF_E_SHUTDOWN && accounts.shutdown) return;
    if (status == RINGBUF_E_NO_SPACE && scenario->no_pages) return;
    if (status == RINGBUF_E_CLOSED) return; /* judged in the scenarios that close */
    model_fail("%s answered: %s", call, ringbuf_status_text(status));
}

static void note_full(int me)
{
    if (accounts.full_count == 16) return;
    accounts.full[accounts.full_count].begin = accounts.processes[me].call_begin;
    accounts.full[accounts.full_count++].end = model_now_step();
}

static void call_put(int me, char letter, int64_t deadline)
{
    uint64_t *buffer = buffers[me][0];
    uint64_t size = size_of_letter(letter);
    begin_call(me, letter, 0);
    int item = new_item(me, size);
    fill(buffer, item, size);
    ringbuf_status status = ringbuf_put(handle_of(me), buffer, size, deadline);
    expect(status, "put", deadline != RINGBUF_FOREVER);
    if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_NO_SPACE) note_full(me);
    end_put(item, status);
    end_call(me, (uint64_t)status);
}

static void call_put_two(int me, char letter, int64_t deadline)
{
    uint64_t size = size_of_letter(letter);
    begin_call(me, letter, 0);
    int items[2] = {new_item(me, size), new_item(me, size)};
    ringbuf_part parts[2];
    for (int i = 0; i < 2; i++) {
        fill(buffers[me][i], items[i], size);
        parts[i] = (ringbuf_part){.data = buffers[me][i], .size = size};
    }
    ringbuf_status status = ringbuf_put_all(handle_of(me), parts, 2, deadline);
    expect(status, "put_all", deadline != RINGBUF_FOREVER);
    for (int i = 0; i < 2; i++) end_put(items[i], status);
    end_call(me, (uint64_t)status);
}

static struct delivery *note_empty(int me)
{
    return deliver(me, -1, accounts.processes[me].call_begin);
}

/** Returns whether something came. */
static bool call_get(int me, char letter, int64_t deadline)
{
    uint64_t *buffer = buffers[me][0];
    size_t size = 0;
    begin_call(me, letter, 1);
    ringbuf_status status = ringbuf_get(handle_of(me), &size, buffer, sizeof buffers[me][0], deadline);
    expect(status, "get", deadline != RINGBUF_FOREVER);
    int item = -1;
    if (status == RINGBUF_OK) {
        item = item_in(buffer, size);
        deliver(me, item, accounts.processes[me].call_begin);
        accounts.processes[me].gets++;
    } else if (status == RINGBUF_E_TIMEOUT || status == RINGBUF_E_SHUTDOWN) {
        if (!accounts.shutdown_at_once) note_empty(me)->shut_down = status == RINGBUF_E_SHUTDOWN;
        if (status == RINGBUF_E_SHUTDOWN) accounts.processes[me].shut_down = true;
    }
    end_call(me, (uint64_t)(item + 2) << 8 | (uint64_t)status);
    return status == RINGBUF_OK;
}

static void into_hands(int me, const ringbuf_message *message, uint64_t begin)
{
    int at = accounts.processes[me].hand_count++;
    model_plain(message->data, message->size, false);
    accounts.processes[me].hands[at] = *message;
    accounts.processes[me].hand_items[at] = item_in(message->data, message->size);
    accounts.processes[me].hand_begins[at] = begin;
}

static void call_take(int me, char letter, int64_t deadline)
{
    ringbuf_message message = {0};
    begin_call(me, letter, 0);
    ringbuf_status status = letter == 'l' ? ringbuf_lease(handle_of(me), &message, NULL, 0, deadline) : ringbuf_take(handle_of(me), &message, NULL, 0, deadline);
    expect(status, "take", deadline != RINGBUF_FOREVER);
    if (status == RINGBUF_OK) into_hands(me, &message, accounts.processes[me].call_begin);
    else if (status == RINGBUF_E_TIMEOUT) note_empty(me);
    int count = accounts.processes[me].hand_count;
    uint64_t what = status != RINGBUF_OK ? 0 : model_mix((uint64_t)accounts.processes[me].hand_items[count - 1] << 20 | message.attempts,
                                                         model_mix(message.position, message.ticket));
    end_call(me, what ^ (uint64_t)status);
}

static void call_take_two(int me, char letter, int64_t deadline)
{
    ringbuf_message messages[2] = {{0}};
    size_t count = 0;
    begin_call(me, letter, 0);
    ringbuf_status status = ringbuf_take_many(handle_of(me), messages, &count, 2, SIZE_MAX, NULL, 0, deadline);
    expect(status, "take_many", deadline != RINGBUF_FOREVER);
    uint64_t begin = accounts.processes[me].call_begin, outcome = (uint64_t)status | count << 8;
    int items[2] = {0};
    for (size_t i = 0; status == RINGBUF_OK && i < count; i++) {
        model_plain(messages[i].data, messages[i].size, false);
        items[i] = item_in(messages[i].data, messages[i].size);
        outcome = outcome << 8 | (uint64_t)items[i];
    }
    if (status == RINGBUF_E_TIMEOUT) note_empty(me);
    end_call(me, outcome);
    if (status != RINGBUF_OK) return;
    begin_call(me, letter == 'm' ? 'a' : 'n', letter == 'm' ? (int)count : 0);
    if (letter == 'M')
        for (size_t i = 0; i < count; i++) accounts.items[items[i]].in_other_hands = true;
    status = letter == 'm' ? ringbuf_ack_all(handle_of(me), messages, count) : ringbuf_return_all(handle_of(me), messages, count);
    expect(status, "ack_all", false);
    if (letter == 'm' && status == RINGBUF_OK) {
        for (size_t i = 0; i < count; i++) deliver(me, items[i], begin);
        accounts.processes[me].gets += count;
    }
    end_call(me, (uint64_t)status);
}

/** End all that is in hands. */
static void call_end(int me, char letter)
{
    while (accounts.processes[me].hand_count) {
        int at = 0; /* the oldest first */
        ringbuf_message message = accounts.processes[me].hands[at];
        int item = accounts.processes[me].hand_items[at];
        model_plain(message.data, message.size, false);
        if (item_in(message.data, message.size) != item) model_fail("item %d was overwritten while p%d had it", item, me);
        begin_call(me, letter, letter != 'n');
        if (letter == 'n') accounts.items[item].in_other_hands = true;
        ringbuf_status status = letter == 'a' ? ringbuf_ack(handle_of(me), &message)
                              : letter == 'n' ? ringbuf_nack(handle_of(me), &message)
                                              : ringbuf_keep(handle_of(me), &message);
        expect(status, "ack, nack or keep", false);
        if (letter != 'n') {
            deliver(me, item, accounts.processes[me].hand_begins[at]);
            accounts.processes[me].gets++;
        }
        if (letter == 'k') {
            int kept = accounts.processes[me].kept_count++;
            accounts.processes[me].kept[kept] = message;
            accounts.processes[me].kept_items[kept] = item;
        }
        int left = --accounts.processes[me].hand_count;
        memmove(&accounts.processes[me].hands[0], &accounts.processes[me].hands[1], (size_t)left * sizeof message);
        memmove(&accounts.processes[me].hand_items[0], &accounts.processes[me].hand_items[1], (size_t)left * sizeof(int));
        memmove(&accounts.processes[me].hand_begins[0], &accounts.processes[me].hand_begins[1], (size_t)left * sizeof(uint64_t));
        end_call(me, (uint64_t)status);
    }
}

static void call_release(int me)
{
    while (accounts.processes[me].kept_count) {
        int at = --accounts.processes[me].kept_count;
        ringbuf_message message = accounts.processes[me].kept[at];
        model_plain(message.data, message.size, false);
        if (item_in(message.data, message.size) != accounts.processes[me].kept_items[at]) model_fail("a kept message was overwritten");
        begin_call(me, 'r', 0);
        expect(ringbuf_release(handle_of(me), &message), "release", false);
        end_call(me, 0);
    }
}

static void call_reserve(int me, int64_t deadline)
{
    begin_call(me, 'R', 0);
    ringbuf_status status = ringbuf_reserve(handle_of(me), &accounts.processes[me].reservation, LARGE_BYTES, deadline);
    expect(status, "reserve", deadline != RINGBUF_FOREVER);
    accounts.processes[me].reserved = status == RINGBUF_OK;
    end_call(me, (uint64_t)status);
}

static void call_commit(int me, char letter)
{
    if (!accounts.processes[me].reserved) return;
    const ringbuf_reservation *reservation = &accounts.processes[me].reservation;
    begin_call(me, letter, 0);
    ringbuf_status status = RINGBUF_OK;
    if (letter == 'A') {
        status = ringbuf_abort(handle_of(me), reservation);
        expect(status, "abort", false);
    } else {
        int item = new_item(me, LARGE_BYTES);
        uint64_t *buffer = buffers[me][0];
        fill(buffer, item, LARGE_BYTES);
        model_memcpy(reservation->data, buffer, LARGE_BYTES);
        status = ringbuf_commit(handle_of(me), reservation, LARGE_BYTES, RINGBUF_FOREVER);
        expect(status, "commit", false);
        end_put(item, status);
        if (status != RINGBUF_OK) ringbuf_abort(handle_of(me), reservation);
    }
    accounts.processes[me].reserved = false;
    end_call(me, (uint64_t)status);
}

static void call_other(int me, char letter, int64_t deadline)
{
    ringbuf *rb = handle_of(me);
    uint64_t recovered = 0;
    ringbuf_status status = RINGBUF_OK;
    begin_call(me, letter, 0);
    switch (letter) {
    case 'd':
        accounts.processes[me].done_begun++;
        status = ringbuf_task_done(rb);
        if (status == RINGBUF_OK) accounts.processes[me].done++;
        else if (status != RINGBUF_E_TOO_MANY) model_fail("task_done answered: %s", ringbuf_status_text(status));
        break;
    case 'j': {
        status = ringbuf_join(rb, deadline);
        expect(status, "join", deadline != RINGBUF_FOREVER);
        /* Every item whose put was answered before this call began is done. */
        for (int item = 0; status == RINGBUF_OK && item < ITEMS && !model_anybody_died(); item++) {
            if (accounts.items[item].state != PUT || accounts.items[item].put_end > accounts.processes[me].call_begin) continue;
            if (accounts.items[item].put_end && accounts.items[item].put_end == accounts.processes[me].call_begin) continue;
            bool done = false;
            for (int p = 0; p < MODEL_PROCESSES; p++)
                for (int k = 0; k < accounts.processes[p].got_count && k < accounts.processes[p].done_begun; k++)
                    done |= accounts.processes[p].got_items[k] == item;
            if (!done) model_fail("join returned although item %d is not done", item);
        }
        break;
    }
    case 's': case 'S':
        accounts.shutdown = true;
        if (letter == 'S') accounts.shutdown_at_once = true;
        expect(ringbuf_shutdown(rb, letter == 'S'), "shutdown", false);
        break;
    case 'c': expect(ringbuf_recover(rb, &recovered), "recover", false); break;
    case 'z':
        /* What it has taken goes back. */
        for (int i = 0; i < accounts.processes[me].hand_count; i++) accounts.items[accounts.processes[me].hand_items[i]].in_other_hands = true;
        accounts.processes[me].hand_count = 0;
        ringbuf_close(rb);
        accounts.processes[me].closed = true;
        break;
    case 'J':
        status = rbi_registry_join(&rb->registry, "joined");
        expect(status, "registry join", false);
        break;
    case 'f': expect(ringbuf_items_fd(rb, &accounts.processes[me].items_fd), "items_fd", false); break;
    case 'h':
        if (!rbi_ring_has_room(&rb->ring, SMALL_BYTES)) note_full(me);
        break;
    case 'q': {
        uint64_t items, most = 0;
        expect(ringbuf_size(rb, &items), "size", false);
        for (int item = 0; item < ITEMS; item++) most += accounts.items[item].state != NEVER;
        if (items > most) model_fail("size said %lu, of %lu items", items, most);
        break;
    }
    default: model_fail("no such call: %c", letter);
    }
    end_call(me, (uint64_t)status);
}


static bool sleeps_for_ever(int process);

/** As an event loop does: sleep until the descriptor says that there is something, then look; and now and then look after the dead. */
static void call_poll(int me)
{
    ringbuf *rb = handle_of(me);
    for (int vain = 0, quiet = 0; vain < 4;) {
        uint64_t recovered;
        begin_call(me, 'e', 0);
        int64_t until = model_clock() + 100000000;
        platform_model_poll(accounts.processes[me].items_fd, until);
        bool up = platform_model_is_up(accounts.processes[me].items_fd);
        if (!up) expect(ringbuf_recover(rb, &recovered), "recover", false);
        end_call(me, up);
        if (!up && ++quiet == 4) {
            if (sleeps_for_ever(me)) return;
            model_fail("p%d polls for ever", me);
        }
        if (!up) continue;
        if (call_get(me, 'g', 0) || accounts.processes[me].shut_down) return;
        vain++;
    }
    model_fail("the descriptor said four times that there was something, and there was nothing");
}

static void call_put_by_descriptor(int me)
{
    uint64_t buffer[SMALL_BYTES / 8];
    ringbuf *rb = handle_of(me);
    begin_call(me, 'F', 0);
    int item = new_item(me, SMALL_BYTES);
    fill(buffer, item, SMALL_BYTES);
    ringbuf_status status;
    while ((status = ringbuf_put(rb, buffer, SMALL_BYTES, 0)) == RINGBUF_E_TIMEOUT) {
        expect(ringbuf_changes_fd(rb, RINGBUF_ROOM, &accounts.processes[me].room_fd), "changes_fd", false);
        if ((status = ringbuf_put(rb, buffer, SMALL_BYTES, 0)) != RINGBUF_E_TIMEOUT) break;
        platform_model_poll(accounts.processes[me].room_fd, model_clock() + 100000000);
    }
    expect(status, "put", false);
    expect(ringbuf_pass_on(rb), "pass_on", false);
    end_put(item, status);
    end_call(me, (uint64_t)status);
}

static void live(int me)
{
    for (const char *call = scenario->scripts[me]; *call; call++) {
        char letter = *call;
        int64_t deadline = RINGBUF_FOREVER;
        if (call[1] == '0') deadline = 0, call++;
        if (accounts.processes[me].closed) return;
        switch (letter) {
        case 'p': case 'w': case 'P': call_put(me, letter, deadline); break;
        case 'b': case 'B': call_put_two(me, letter, deadline); break;
        case 'g': call_get(me, letter, deadline); break;
        case 't': case 'l': call_take(me, letter, deadline); break;
        case 'm': case 'M': call_take_two(me, letter, deadline); break;
        case 'a': case 'n': case 'k': call_end(me, letter); break;
        case 'r': call_release(me); break;
        case 'R': call_reserve(me, deadline); break;
        case 'C': case 'A': call_commit(me, letter); break;
        case 'e': call_poll(me); break;
        case 'F': call_put_by_descriptor(me); break;
        default: call_other(me, letter, deadline);
        }
    }
}

/* ---- while all sleep ---- */

/** Whether somebody died whose entry still says that he lives: then what he has left half done may be what all wait for. */
static bool somebody_is_to_be_recovered(void)
{
    if (scenario->after_a_death && segment->entries[dead_number - 1].state) return true;
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++) {
        if (!is_dead(p)) continue;
        uint32_t number = kept_handles[handle_of(p) - handles].registry.self;
        if (number == 0 || segment->entries[number - 1].state) return true;
    }
    return false;
}

/** Time has gone on again and again, and it still sleeps.  Those who wait look after the dead meanwhile. */
static bool sleeps_for_ever(int process)
{
    (void)process;
    if (somebody_is_to_be_recovered()) return false;
    return scenario->may_sleep || model_anybody_died();
}

/** The window that the process has to leave alone.  (One that has lapsed, too: it looks again within 100 ms.) */
static uint64_t spared_by(int process)
{
    const uint64_t window = *(volatile uint64_t *)(void *)&segment->header.turn.window;
    return rbi_window_owner(window) == handle_of(process)->registry.self ? 0 : window;
}

static void judge_sleep(const int64_t *deadlines)
{
    ringbuf *rb = &handles[MAIN];
    if (somebody_is_to_be_recovered()) return;
    for (int p = 0; p < MODEL_PROCESSES; p++) {
        if (deadlines[p] < 0) continue;
        const void *word = model_sleeps_on(p);
        const char *why = NULL;
        ringbuf_stats stats;
        ringbuf_get_stats(rb, &stats);
        bool large = accounts.processes[p].call == 'P' || accounts.processes[p].call == 'R' || accounts.processes[p].call == 'B';
        if (word == &segment->header.items.word && stats.items) why = "a message is there";
        if (word == &segment->header.items.word && stats.shutdown) why = "the queue is shut down";
        if (word == &segment->header.space.word && stats.shutdown) why = "the queue is shut down";
        if (word == &segment->header.space.word && rbi_ring_has_room(&rb->ring, large ? RBI_REFERENCE_BYTES : size_of_letter(accounts.processes[p].call)) &&
            accounts.processes[p].call != 'b' && accounts.processes[p].call != 'B')
            why = "there is room";
        if (word == &segment->header.room.word && rbi_arena_has_room(&rb->arena, LARGE_BYTES, spared_by(p)) && accounts.processes[p].call != 'B')
            why = "the arena has room";
        if (word == &segment->header.tasks.word && stats.unfinished == 0) why = "all is done";
        /* (After a death it may take until the next look after the dead, which is every 100 ms.) */
        if (accounts.processes[p].call == 'e' && accounts.processes[p].items_fd && (stats.items || stats.shutdown) && !model_anybody_died())
            why = "something is there, and the descriptor does not say so";
        uint32_t calls = *(volatile uint32_t *)(void *)&handle_of(p)->calls;
        if (calls & RBI_HANDLE_CLOSED && word != &handle_of(p)->calls && word != NULL) why = "the handle is closed";
        if (word == &handle_of(p)->calls && calls < RBI_HANDLE_CALL) why = "no call is under way";
        if (why) model_fail("p%d sleeps although %s", p, why);
    }
}

/* ---- at the end ---- */

static bool is_delivered(int item)
{
    for (int i = 0; i < accounts.delivery_count; i++)
        if (accounts.deliveries[i].item == item) return true;
    return false;
}

static bool is_in_live_hands(int item)
{
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++)
        for (int i = 0; i < accounts.processes[p].hand_count && !is_dead(p); i++)
            if (accounts.processes[p].hand_items[i] == item) return true;
    return false;
}

static void drain(void)
{
    uint64_t *buffer = buffers[MAIN][0];
    size_t size;
    ringbuf_status status;
    while ((status = ringbuf_get(&handles[MAIN], &size, buffer, sizeof buffers[MAIN][0], 0)) == RINGBUF_OK) {
        deliver(MAIN, item_in(buffer, size), never);
        accounts.processes[MAIN].gets++;
    }
    if (status != RINGBUF_E_TIMEOUT && status != RINGBUF_E_SHUTDOWN) model_fail("at the end, get answered: %s", ringbuf_status_text(status));
}

static void check_items(void)
{
    int missing = 0, unanswered = 0, taken_by_dead = 0;
    for (int p = 0; p < MODEL_PROCESSES; p++) {
        if (!scenario->scripts[p] || !is_dead(p)) continue;
        unanswered += accounts.processes[p].delivering;
        char call = accounts.processes[p].call;
        taken_by_dead += call && strchr("gmMtl", call) != NULL; /* whatever it had taken is in other hands, and nobody knows what it was */
    }
    for (int i = 0; i < ITEMS; i++)
        if (accounts.items[i].state == PUT && !is_delivered(i) && !is_in_live_hands(i)) missing++;
    if (missing > unanswered && !accounts.shutdown_at_once)
        model_fail("%d items are missing, and only %d could have gone with the dead", missing, unanswered);
    /* FIFO. */
    for (int i = 0; i < accounts.delivery_count && !taken_by_dead; i++) {
        const struct delivery *older = &accounts.deliveries[i];
        if (older->item < 0 || accounts.items[older->item].in_other_hands) continue;
        for (int k = 0; k < accounts.delivery_count; k++) {
            const struct delivery *younger = &accounts.deliveries[k];
            if (younger->item < 0 || accounts.items[younger->item].put_begin <= accounts.items[older->item].put_end) continue;
            if (older->begin > younger->end && !(older->begin == never && younger->begin == never))
                model_fail("item %d was delivered before item %d, whose put had ended before its put began", younger->item, older->item);
            if (older->begin == never && younger->begin == never && k < i)
                model_fail("item %d came before item %d at the end", younger->item, older->item);
        }
    }
    /* "Empty". */
    for (int i = 0; i < accounts.delivery_count && !taken_by_dead; i++) {
        const struct delivery *empty = &accounts.deliveries[i];
        if (empty->item >= 0) continue;
        for (int item = 0; item < ITEMS; item++) {
            if (accounts.items[item].state != PUT || accounts.items[item].in_other_hands) continue;
            if (accounts.items[item].put_end >= empty->begin && !empty->shut_down) continue;
            const struct delivery *of = NULL;
            for (int k = 0; k < accounts.delivery_count; k++)
                if (accounts.deliveries[k].item == item) of = &accounts.deliveries[k];
            if (of && of->begin > empty->end)
                model_fail("p%d was told that the queue is %s, and item %d was %s", empty->process, empty->shut_down ? "shut down" : "empty", item,
                           empty->shut_down ? "still to come" : "in it");
        }
    }
    /* "Full". */
    for (int i = 0; i < accounts.full_count && (scenario->max_items || scenario->no_pages) && !model_anybody_died(); i++) {
        uint64_t most = scenario->prefill;
        for (int item = 0; item < ITEMS; item++)
            if ((accounts.items[item].state == PUT || accounts.items[item].state == PUTTING) && accounts.items[item].put_begin < accounts.full[i].end) most++;
        for (int k = 0; k < accounts.delivery_count; k++)
            if (accounts.deliveries[k].item >= 0 && accounts.deliveries[k].end < accounts.full[i].begin && most) most--;
        if (scenario->no_pages && most == 0) model_fail("a put was told that there is no room, and nothing was in the queue");
        if (most < scenario->max_items) model_fail("a put was told that the queue is full, with at most %lu items in it", most);
    }
}

static void check_words(void)
{
    bool anybody_alive_holds = false;
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++)
        anybody_alive_holds |= !is_dead(p) && (accounts.processes[p].hand_count || accounts.processes[p].kept_count || accounts.processes[p].reserved);
    if (anybody_alive_holds) return;
    for (uint32_t lane = 0; lane < RBI_LANES; lane++)
        for (uint64_t i = 0; i < UINT64_C(1) << scenario->cells_log2; i++) {
            uint64_t word = segment->slots[lane][i].word;
            enum rbi_kind kind = (enum rbi_kind)(word & 15);
            if (kind == RBI_KIND_CLAIMED || kind == RBI_KIND_SKIPPED || kind == RBI_KIND_TAKEN)
                model_fail("slot %lu of lane %u still has an owner: %lx", i, lane, word);
        }
    for (uint32_t lane = 0; lane < RBI_LANES; lane++)
        for (uint64_t i = segment->header.lanes[lane].reserved_cells; i < UINT64_C(1) << scenario->cells_log2; i++)
            if (segment->slots[lane][i].word || segment->slots[lane][i].size) model_fail("slot %lu of lane %u was written and has no page", i, lane);
    if (scenario->no_pages && segment->header.lanes[0].reserved_cells != scenario->reserved) model_fail("there are pages from nowhere");
    const uint64_t window = segment->header.turn.window;
    bool in_call = false; /* one that nobody serves any more goes on waiting, and its turn with it */
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++)
        in_call |= !is_dead(p) && accounts.processes[p].call && handle_of(p)->registry.self == rbi_window_owner(window);
    if (window && !in_call) model_fail("the turn at the arena is not over: %lx", window);
    ringbuf_findings findings;
    if (ringbuf_check(&handles[MAIN], &findings) != RINGBUF_OK) model_fail("check did not answer");
    uint64_t expected = filler.blocks ? 1 : 0; /* the run that keeps the arena small */
    if (findings.orphaned_blocks || findings.orphaned_runs || findings.broken_runs || findings.dangling_messages || findings.runs != expected)
        model_fail("the arena: %lu runs, %lu orphaned blocks, %lu orphaned runs, %lu broken, %lu dangling", findings.runs, findings.orphaned_blocks,
                   findings.orphaned_runs, findings.broken_runs, findings.dangling_messages);
}

static void check_counters(void)
{
    ringbuf_stats stats;
    if (ringbuf_get_stats(&handles[MAIN], &stats) != RINGBUF_OK) model_fail("get_stats did not answer");
    if (stats.items) model_fail("%lu items in an empty queue", stats.items);
    uint64_t puts = 0, putting = 0, gets = 0, done = 0, tasks = 0;
    bool dead_marked = false, left_or_died = false;
    for (int i = 0; i < ITEMS; i++) puts += accounts.items[i].state == PUT, putting += accounts.items[i].state == PUTTING;
    for (int p = 0; p <= MAIN; p++) {
        bool dead = p < MAIN && scenario->scripts[p] && is_dead(p);
        gets += accounts.processes[p].gets;
        done += accounts.processes[p].done;
        if (!dead) tasks += accounts.processes[p].gets - accounts.processes[p].done + (uint64_t)accounts.processes[p].hand_count;
        dead_marked |= dead && accounts.processes[p].done;
        left_or_died |= dead && strchr(scenario->scripts[p], 'z'); /* what it had got is forgiven if it died, but not if it had left */
    }
    if (!model_anybody_died() && (stats.puts != puts + scenario->turned || (stats.gets != gets + scenario->turned && !accounts.shutdown_at_once)))
        model_fail("%lu puts and %lu gets are counted; there were %lu and %lu", stats.puts, stats.gets, puts, gets);
    if (stats.puts > puts + putting + scenario->turned) model_fail("%lu puts are counted, there were at most %lu", stats.puts, puts + putting);
    if (!dead_marked && !left_or_died && !accounts.shutdown_at_once && stats.unfinished != tasks + scenario->turned && (!model_anybody_died() || done == 0))
        model_fail("%lu tasks are unfinished, and should be %lu", stats.unfinished, tasks + scenario->turned);
}

/** The ring takes as much as ever. */
static void check_room(void)
{
    uint64_t buffer[SMALL_BYTES / 8], expected = (UINT64_C(1) << scenario->cells_log2) - 1, fits = 0;
    if (accounts.shutdown) return;
    if (scenario->max_items && scenario->max_items < expected) expected = scenario->max_items;
    memset(buffer, 0, sizeof buffer);
    while (fits < 40 && ringbuf_put(&handles[MAIN], buffer, sizeof buffer, 0) == RINGBUF_OK) fits++;
    bool somebody_holds = false;
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++) somebody_holds |= !is_dead(p) && accounts.processes[p].hand_count;
    /* Where no pages are to be had, as many as lie between the front and the last page, or to either side of where tail stands. */
    if (scenario->no_pages && fits && fits < scenario->reserved) expected = fits;
    if (fits != expected && !somebody_holds) model_fail("the ring takes %lu messages and should take %lu", fits, expected);
    size_t size;
    for (uint64_t i = 0; i < fits; i++)
        if (ringbuf_get(&handles[MAIN], &size, buffer, sizeof buffer, 0) != RINGBUF_OK) model_fail("message %lu of the refilled ring is missing", i);
    if (ringbuf_get(&handles[MAIN], &size, buffer, sizeof buffer, 0) == RINGBUF_OK) model_fail("the refilled ring has one message too many");
}

static void check(void)
{
    uint64_t recovered;
    for (int i = 0; i < 3; i++)
        if (ringbuf_recover(&handles[MAIN], &recovered) != RINGBUF_OK) model_fail("at the end, recover found the queue corrupt");
    if (recovered) model_fail("recovery does not come to an end");
    if (somebody_is_to_be_recovered()) model_fail("one that died still has its entry");
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++) {
        if (is_dead(p) || !accounts.processes[p].items_fd || accounts.processes[p].closed) continue;
        ringbuf_stats stats;
        ringbuf_get_stats(&handles[MAIN], &stats);
        bool up = platform_model_is_up(accounts.processes[p].items_fd);
        if (!up && stats.items) model_fail("p%d's descriptor is down, and %lu items are there", p, stats.items);
        if (up && !stats.items && !stats.shutdown) model_fail("p%d's descriptor is up, and nothing is there", p);
    }
    uint64_t items, before = accounts.processes[MAIN].gets;
    if (ringbuf_size(&handles[MAIN], &items) != RINGBUF_OK) model_fail("size did not answer");
    drain();
    if (accounts.processes[MAIN].gets - before != items) model_fail("size said %lu, and %lu came", items, accounts.processes[MAIN].gets - before);
    check_items();
    check_words();
    check_counters();
    check_room();
}

/* ---- making it ---- */

static void make_memory(void)
{
    if (segment) {
        memset(segment, 0, sizeof *segment);
        return;
    }
    int fd = memfd_create("model", 0);
    size_t prefix = (sizeof *segment + 4095) / 4096 * 4096;
    if (fd < 0 || ftruncate(fd, (off_t)(prefix + (BLOCKS << BLOCK_LOG2) + RBI_LANES * DATA_BYTES)) < 0) abort();
    segment = mmap(NULL, prefix + (BLOCKS << BLOCK_LOG2), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (segment == MAP_FAILED) abort();
    arena_memory = (uint8_t *)segment + prefix;
    for (int lane = 0; lane < RBI_LANES; lane++) {
        data[lane] = mmap(NULL, 2 * DATA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data[lane] == MAP_FAILED) abort();
    }
    handles = aligned_alloc(4096, (sizeof *handles * HANDLES + 4095) / 4096 * 4096);
    if (!handles) abort();
    close(fd);
}

/** The data of a lane twice in a row: a page for 4 cells of 1 KiB. */
static void map_data(void)
{
    size_t bytes = (size_t)1 << (scenario->cells_log2 + CELL_LOG2);
    if (bytes < 4096) bytes = 4096;
    for (int lane = 0; lane < RBI_LANES; lane++) {
        int fd = memfd_create("lane", 0);
        if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0) abort();
        for (int copy = 0; copy < 2; copy++)
            if (mmap(data[lane] + (size_t)copy * bytes, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) abort();
        close(fd);
    }
}

static void make_handle(int process)
{
    ringbuf *rb = &handles[process];
    memset(rb, 0, sizeof *rb);
    rb->file.fd = PLATFORM_MODEL_FD + process;
    rb->idle_s = RBI_IDLE_S;
    rb->next_trim_ns = UINT64_MAX;
    for (int level = 0; level < RBI_LEVELS; level++) rb->levels[level].file.fd = -1;
    rb->header = &segment->header;
    rb->base = segment;
    rb->path = (char *)(uintptr_t)"/model/queue";
    if (rbi_ready_prepare(rb) != RINGBUF_OK) abort();
    rb->stamp.cells_log2 = scenario->cells_log2;
    rb->stamp.cell_log2 = CELL_LOG2;
    rb->stamp.block_log2 = BLOCK_LOG2;
    rb->stamp.blocks = scenario->arena ? BLOCKS : 0;
    rb->stamp.max_items = scenario->max_items;
    rb->stamp.flags = RINGBUF_PERSISTENT;
    rb->mirror_bytes = UINT64_C(1) << (scenario->cells_log2 + CELL_LOG2);
    rbi_ring_init(&rb->ring, &segment->header.order, scenario->cells_log2, CELL_LOG2, scenario->max_items);
    rb->ring.patience = PATIENCE;
    if (scenario->reserved) {
        rb->ring.least_lap = scenario->no_pages ? UINT64_MAX : 1; /* or as many cells as there never are */
        rb->ring.age_shift = 63;
    }
    for (uint32_t lane = 0; lane < RBI_LANES; lane++)
        rbi_ring_add_lane(&rb->ring, &segment->header.lanes[lane], segment->slots[lane], data[lane]);
    rb->ring.looks_aside = scenario->arena;
    rb->ring_limit = scenario->arena ? RING_LIMIT : rbi_ring_max_payload(&rb->ring);
    rbi_arena_init(&rb->arena, &segment->header.arena, segment->table, segment->runs, arena_memory, rb->stamp.blocks, BLOCK_LOG2);
    rb->guarded = rbi_guard_add(rb->base, 0, 0, 0, &rb->calls, RBI_HANDLE_LOST);
    rb->registry = (struct rbi_registry){
        .header = rb->header, .entries = segment->entries, .ring = &rb->ring, .arena = &rb->arena, .fd = rb->file.fd, .max_participants = HANDLES};
    /* Somebody looked after the dead when the clock began, and who waits sleeps first. */
    rb->next_poll_ns = START_NS + 1000000;
    rb->registry.vigil = (struct rbi_vigil){.seen_ns = START_NS, .last_ns = START_NS, .own_ns = START_NS, .wakes_ns = START_NS + 100000000};
}

static void join(int process)
{
    if (rbi_lock_try(handles[process].file.fd, RBI_LOCK_PRESENCE, RBI_LOCK_SHARED) != RINGBUF_OK) abort();
    if (rbi_registry_join(&handles[process].registry, "model") != RINGBUF_OK) abort();
}

static void restore(void)
{
    memcpy(handles, kept_handles, sizeof kept_handles);
    for (uint32_t i = 0; scenario->prefill && i < UINT32_C(1) << scenario->cells_log2; i++)
        memcpy(segment->slots[0][i].payload, kept_payloads[i], RBI_INLINE_BYTES);
    platform_model_restore();
    memset(&accounts, 0, sizeof accounts);
    for (uint32_t i = 0; i < scenario->prefill; i++)
        accounts.items[MAIN * PER_PROCESS + (int)i] = (struct item){
            .state = PUT, .put_begin = 0, .put_end = 0, .size = SMALL_BYTES, .in_other_hands = scenario->after_a_death && i == 0};
}

static uint64_t hash(void) { return platform_model_hash(); }

static void process_died(int process)
{
    for (int p = 0; p < MODEL_PROCESSES && scenario->scripts[p]; p++) {
        /* Its threads die with it. */
        if (p != process && handle_of(p) == handle_of(process) && model_may_kill(p)) model_kill(p);
    }
    platform_model_died((int)(handle_of(process) - handles));
    for (int i = 0; i < accounts.processes[process].hand_count; i++) accounts.items[accounts.processes[process].hand_items[i]].in_other_hands = true;
}

static void name_word(char *text, size_t bytes, const void *word)
{
    const uint8_t *at = word;
    size_t offset = (size_t)(at - (const uint8_t *)segment);
    if (at >= (const uint8_t *)handles && at < (const uint8_t *)(handles + HANDLES)) {
        snprintf(text, bytes, "handle %ld + %ld", (at - (const uint8_t *)handles) / (long)sizeof *handles,
                 (at - (const uint8_t *)handles) % (long)sizeof *handles);
        return;
    }
#define IN(field) (offset >= offsetof(struct segment, field) && offset < offsetof(struct segment, field) + sizeof segment->field)
#define NUMBER(field, type) ((offset - offsetof(struct segment, field)) / sizeof(type))
    if (at >= arena_memory && at < arena_memory + (BLOCKS << BLOCK_LOG2)) snprintf(text, bytes, "block %ld", (at - arena_memory) >> BLOCK_LOG2);
    else if (IN(slots))
        snprintf(text, bytes, "lane %lu slot %lu.%s", NUMBER(slots, segment->slots[0]), NUMBER(slots, struct rbi_slot) % 16,
                 offset % 64 == 0 ? "word" : offset % 64 == 8 ? "size" : "payload");
    else if (IN(table)) snprintf(text, bytes, "table[%lu]", NUMBER(table, rbi_atomic64));
    else if (IN(runs)) snprintf(text, bytes, "run %lu + %lu", NUMBER(runs, struct rbi_run_entry), offset % 16);
    else if (IN(entries)) snprintf(text, bytes, "participant %lu + %lu", NUMBER(entries, struct rbi_participant) + 1, (offset - offsetof(struct segment, entries)) % 128);
    else if (IN(header.lanes)) {
        static const char *const names[] = {"tail", "head", "reclaim", "irregular"};
        size_t in_lane = (offset - offsetof(struct segment, header.lanes)) % sizeof(struct rbi_cursors);
        snprintf(text, bytes, "lane %lu.%s%s", NUMBER(header.lanes, struct rbi_cursors), names[in_lane / 128], in_lane % 128 ? "'s reserved" : "");
    } else if (IN(header.order)) {
        static const char *const names[] = {"returned", "put_epoch", "get_epoch"};
        snprintf(text, bytes, "%s", names[(offset - offsetof(struct segment, header.order)) / 8 % 3]);
    } else if (IN(header.items)) snprintf(text, bytes, "items");
    else if (IN(header.space)) snprintf(text, bytes, "space");
    else if (IN(header.tasks)) snprintf(text, bytes, "tasks");
    else if (IN(header.room)) snprintf(text, bytes, "room");
    else if (IN(header.turn)) snprintf(text, bytes, "turn + %lu", offset - offsetof(struct segment, header.turn));
    else if (IN(header.shutdown)) snprintf(text, bytes, "shutdown");
    else if (IN(header.listeners)) snprintf(text, bytes, "listeners[%lu]", NUMBER(header.listeners, uint32_t));
    else if (offset < sizeof *segment) snprintf(text, bytes, "header + %lu", offset);
    else snprintf(text, bytes, "a data cell");
}

static struct model_program program;

const struct model_program *world_arrange(const struct scenario *wanted)
{
    static struct scenario copy;
    copy = *wanted;
    if (!copy.cells_log2) copy.cells_log2 = 2;
    scenario = &copy;
    model_forget();
    make_memory();
    map_data();
    platform_model_forget();
    platform_model_share(handles, handles + HANDLES);
    model_track(segment, sizeof *segment);
    model_track(handles, sizeof *handles * HANDLES);
    model_track_plain(segment->slots, sizeof segment->slots, NULL);
    model_track_plain(arena_memory, BLOCKS << BLOCK_LOG2, NULL);
    for (int lane = 0; lane < RBI_LANES; lane++) {
        size_t bytes = (size_t)1 << (copy.cells_log2 + CELL_LOG2);
        model_track_plain(data[lane], bytes, data[lane] + bytes);
    }
    filler = (struct rbi_run){0};
    memset(&accounts, 0, sizeof accounts);
    int processes = 0;
    while (processes < MODEL_PROCESSES && copy.scripts[processes]) processes++;
    for (int p = 0; p < HANDLES; p++)
        if (p < processes || p == MAIN) make_handle(p);
    ringbuf *rb = &handles[MAIN];
    /* Before the end of all numbers: a lap and a bit. */
    uint64_t first = rbi_ring_first_position(&rb->ring);
    if (copy.wrap) first = (UINT64_C(1) << (63 - copy.cells_log2)) - (UINT64_C(1) << copy.cells_log2);
    rbi_ring_start_at(&rb->ring, first);
    for (uint32_t lane = 0; lane < RBI_LANES; lane++)
        segment->header.lanes[lane].reserved_cells = !copy.reserved ? UINT64_C(1) << copy.cells_log2
                                                   : lane && copy.no_pages ? 0 : copy.reserved;
    platform_model_no_pages = false;
    segment->header.watch.looked_ns = START_NS;
    segment->header.watch.participants = (uint64_t)processes + 1;
    join(MAIN);
    for (int p = 0; p < processes; p++)
        if (copy.scripts[p][0] != 'J' && !copy.thread_of[p]) join(p);
    uint64_t buffer[SMALL_BYTES / 8];
    size_t size;
    for (uint32_t i = 0; i < copy.turned; i++) {
        fill(buffer, 0, SMALL_BYTES);
        if (ringbuf_put(rb, buffer, SMALL_BYTES, 0) != RINGBUF_OK || ringbuf_get(rb, &size, buffer, sizeof buffer, 0) != RINGBUF_OK) abort();
    }
    for (uint32_t i = 0; i < copy.prefill; i++) {
        fill(buffer, MAIN * PER_PROCESS + (int)i, SMALL_BYTES);
        if (ringbuf_put(rb, buffer, SMALL_BYTES, 0) != RINGBUF_OK) abort();
    }
    if (copy.after_a_death) {
        ringbuf_message message = {0};
        make_handle(processes);
        join(processes);
        dead_number = handles[processes].registry.self;
        if (ringbuf_take(&handles[processes], &message, NULL, 0, 0) != RINGBUF_OK) abort();
        platform_model_died(processes);
    }
    if (copy.arena && copy.free_blocks < BLOCKS) {
        /* The rest belongs to the main handle, so that the arena is small, and full soon. */
        struct rbi_reserve_call call = {.size = (uint64_t)(BLOCKS - copy.free_blocks) << BLOCK_LOG2};
        if (rbi_attempt_reserve(rb, &call) != RINGBUF_OK) abort();
        filler = call.run;
    }
    platform_model_no_pages = copy.no_pages;
    memcpy(kept_handles, handles, sizeof kept_handles);
    for (uint32_t i = 0; i < UINT32_C(1) << copy.cells_log2; i++) memcpy(kept_payloads[i], segment->slots[0][i].payload, RBI_INLINE_BYTES);
    platform_model_keep();
    program = (struct model_program){
        .processes = processes,
        .body = live,
        .died = process_died,
        .restore = restore,
        .hash = hash,
        .stuck = judge_sleep,
        .sleeps_for_ever = sleeps_for_ever,
        .check = check,
        .name_word = name_word,
    };
    return &program;
}
