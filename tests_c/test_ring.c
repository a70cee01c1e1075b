/* test_ring.c — floor 1: the algorithm on plain memory, in one thread.  Situations are arranged by writing cursors and words, not by
 * hoping for them.  Threads and processes have suites of their own (test_stress_*.c), deaths at every point too (test_crash.c). */
#include "support.h"

#include "platform.h"
#include "ring.h"

enum {
    PRODUCER = 1,
    CONSUMER = 2,
    OTHER = 3,
    SMALL_RING_LOG2 = 5, /* 32 cells */
    SMALL_RING = 1 << SMALL_RING_LOG2,
    FULL_RING = SMALL_RING - 1, /* one cell is kept free */
    CELL_LOG2 = RBI_CELL_MIN_LOG2,
    CELL = 1 << CELL_LOG2,
};

/* ---- a ring to play with: cursors and slots on the heap, where AddressSanitizer guards their ends; data mapped twice ---- */

static struct rbi_ring ring;
static struct rbi_order order;
static struct rbi_cursors *cursors; /* of all lanes; tests without lanes mean the first */
static struct rbi_slot *slots;      /* likewise, one lane's after the other's */
static void *data_mapping;          /* a page that is not used, and the data of the lanes, each twice */

static rbi_atomic64 *returned_word(void) { return &order.returned; }
static rbi_atomic64 *reclaim_seen(void) { return &ring.lanes[0].reclaim_seen; }
static bool bypass(void) { struct rbi_record lacking; return rbi_ring_bypass(&ring, 0, &lacking) == RBI_RING_OK; }
static enum rbi_ring_outcome raise_reserved(uint64_t cells) { return rbi_ring_raise_reserved(&ring, 0, cells); }
static uint64_t number_of(const struct rbi_record *record) { return rbi_ring_number_of(record); }

static void view_ring(uint8_t *data, uint32_t cells_log2, uint64_t position, uint64_t max_items)
{
    memset(&order, 0, sizeof order);
    rbi_ring_init(&ring, &order, cells_log2, CELL_LOG2, max_items);
    for (uint64_t lane = 0; lane < RBI_LANES; lane++)
        rbi_ring_add_lane(&ring, &cursors[lane], &slots[lane << cells_log2], data + (2 * lane << (cells_log2 + CELL_LOG2)));
    rbi_ring_start_at(&ring, position);
    ring.patience = 0;
}

static void forget_ring(void)
{
    if (data_mapping) rbi_unmap(data_mapping, rbi_page_bytes(), (uint64_t)1 << (ring.cells_log2 + ring.cell_log2), RBI_LANES);
    free(slots);
    free(cursors);
    slots = NULL;
    cursors = NULL;
    data_mapping = NULL;
    memset(&ring, 0, sizeof ring);
}

/** An empty ring of 2^cells_log2 cells whose next position is `position`, all of it with pages, nobody patient. */
static void start_ring(uint32_t cells_log2, uint64_t position, uint64_t max_items)
{
    forget_ring();
    uint64_t bytes = (uint64_t)1 << (cells_log2 + CELL_LOG2);
    int fd = memfd_create("ring", MFD_CLOEXEC);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, fd);
    ASSERT_OK(rbi_file_set_size(fd, rbi_page_bytes() + RBI_LANES * bytes));
    ASSERT_OK(rbi_map(&data_mapping, fd, rbi_page_bytes(), bytes, RBI_LANES));
    close(fd);
    cursors = calloc(RBI_LANES, sizeof *cursors);
    slots = calloc((size_t)RBI_LANES << cells_log2, sizeof *slots);
    TEST_ASSERT_TRUE(cursors && slots);
    view_ring((uint8_t *)data_mapping + rbi_page_bytes(), cells_log2, position, max_items);
    for (int lane = 0; lane < RBI_LANES; lane++)
        rbi_store_relaxed64(&cursors[lane].reserved_cells, (uint64_t)1 << cells_log2);
}

static void small_ring(void) { start_ring(SMALL_RING_LOG2, SMALL_RING, 0); }
static void small_ring_of(uint64_t max_items) { start_ring(SMALL_RING_LOG2, SMALL_RING, max_items); }

void setUp(void) {}
void tearDown(void) { forget_ring(); }

/* ---- one line for each thing that is done all the time ---- */

#define ASSERT_OUTCOME(expected, call) TEST_ASSERT_EQUAL_INT(expected, call)
#define ASSERT_DONE(call) ASSERT_OUTCOME(RBI_RING_OK, call)

/** Claim room for a text (with its terminating zero) and write it. */
static struct rbi_record claim_as(uint32_t owner, const char *text)
{
    struct rbi_record record;
    ASSERT_DONE(rbi_ring_claim(&ring, &record, owner, strlen(text) + 1));
    memcpy(record.payload, text, strlen(text) + 1);
    return record;
}

static struct rbi_record claim(const char *text) { return claim_as(PRODUCER, text); }

static void publish(const struct rbi_record *record) { ASSERT_DONE(rbi_ring_publish(&ring, record, PRODUCER)); }

static void put(const char *text)
{
    struct rbi_record record = claim(text);
    publish(&record);
}

static struct rbi_record take_as(uint32_t owner, const char *text)
{
    struct rbi_record record;
    ASSERT_DONE(rbi_ring_take(&ring, &record, owner, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(strlen(text) + 1, record.size);
    TEST_ASSERT_EQUAL_STRING(text, record.payload);
    return record;
}

static struct rbi_record take(const char *text) { return take_as(CONSUMER, text); }

static void get(const char *text)
{
    struct rbi_record record = take(text);
    rbi_ring_release(&ring, &record);
}

static void assert_take(enum rbi_ring_outcome expected)
{
    struct rbi_record record;
    ASSERT_OUTCOME(expected, rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
}

static void assert_claim(enum rbi_ring_outcome expected, uint64_t size)
{
    struct rbi_record record;
    ASSERT_OUTCOME(expected, rbi_ring_claim(&ring, &record, PRODUCER, size));
}

static void assert_count(uint64_t expected)
{
    uint64_t items = UINT64_MAX;
    ASSERT_DONE(rbi_ring_count(&ring, &items));
    TEST_ASSERT_EQUAL_UINT64(expected, items);
}

static void assert_empty(void)
{
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
    TEST_ASSERT_EQUAL_UINT64(0, rbi_ring_used_bytes(&ring));
}

static enum rbi_kind kind_of(const struct rbi_record *record) { return rbi_ring_kind_at(&ring, record->position); }
static bool hint(void) { return rbi_load_total64(returned_word()) & 1; }
static uint64_t head(void) { return rbi_ring_head_position(&ring); }
static uint64_t tail(void) { return rbi_ring_tail_position(&ring); }
static uint64_t reclaimed(void) { return rbi_load_total64(&cursors->reclaim); }

/** A slot word as layout.h pictures it. */
static uint64_t word(uint64_t position, uint64_t cells, uint32_t owner, uint32_t kind)
{
    uint64_t lap = position >> ring.cells_log2;
    return lap << (16 + ring.cells_log2) | cells << 16 | (uint64_t)owner << 4 | kind;
}

static void write_word(uint64_t position, uint64_t cells, uint32_t owner, uint32_t kind)
{
    uint64_t slot = position & (((uint64_t)1 << ring.cells_log2) - 1);
    rbi_store_total64(&slots[slot].word, word(position, cells, owner, kind));
}

/* A payload of any size that tells its number: the first and the last bytes, as far as there are any. */

static void write_number(uint8_t *payload, uint64_t size, uint64_t number)
{
    if (size >= 16) {
        memcpy(payload, &number, 8);
        memcpy(payload + size - 8, &number, 8);
    } else {
        memset(payload, (int)(number & 0xff), size);
    }
}

static bool tells_number(const uint8_t *payload, uint64_t size, uint64_t number)
{
    if (size >= 16) return memcmp(payload, &number, 8) == 0 && memcmp(payload + size - 8, &number, 8) == 0;
    for (uint64_t i = 0; i < size; i++)
        if (payload[i] != (number & 0xff)) return false;
    return true;
}

static enum rbi_ring_outcome put_number(uint64_t number, uint64_t size)
{
    struct rbi_record record;
    enum rbi_ring_outcome outcome = rbi_ring_claim(&ring, &record, PRODUCER, size);
    if (outcome != RBI_RING_OK) return outcome;
    write_number(record.payload, size, number);
    return rbi_ring_publish(&ring, &record, PRODUCER);
}

static void get_number(uint64_t number, uint64_t size)
{
    struct rbi_record record;
    ASSERT_DONE(rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(size, record.size);
    TEST_ASSERT_TRUE(tells_number(record.payload, size, number));
    rbi_ring_release(&ring, &record);
}

static void fill_with_one_cell_messages(uint64_t from, uint64_t count)
{
    for (uint64_t number = from; number < from + count; number++) ASSERT_DONE(put_number(number, 1));
}

/* ---- put and get ---- */

static void test_a_new_ring_is_empty(void)
{
    small_ring();
    assert_empty();
    TEST_ASSERT_FALSE(rbi_ring_may_take(&ring));
    TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, rbi_ring_max_payload(&ring)));
}

static void test_messages_come_out_in_the_order_they_went_in(void)
{
    small_ring();
    put("a");
    put("b");
    put("c");
    assert_count(3);
    TEST_ASSERT_TRUE(rbi_ring_may_take(&ring));
    get("a");
    get("b");
    get("c");
    assert_empty();
}

static void test_taken_messages_may_be_released_in_any_order(void)
{
    small_ring();
    put("a");
    put("b");
    struct rbi_record a = take("a"), b = take("b");
    rbi_ring_release(&ring, &b);
    TEST_ASSERT_EQUAL_UINT64(2 * CELL, rbi_ring_used_bytes(&ring)); /* b's cell waits for a's */
    rbi_ring_release(&ring, &a);
    assert_empty();
}

static void test_a_message_across_the_end_of_the_ring_lies_in_one_piece(void)
{
    uint8_t sent[8 * CELL];
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (uint8_t)next_random(&seed);
    start_ring(SMALL_RING_LOG2, 2 * SMALL_RING - 3, 0);
    struct rbi_record record;
    ASSERT_DONE(rbi_ring_claim(&ring, &record, PRODUCER, sizeof sent));
    memcpy(record.payload, sent, sizeof sent);
    publish(&record);
    put("behind");
    ASSERT_DONE(rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(sizeof sent, record.size);
    TEST_ASSERT_EQUAL_MEMORY(sent, record.payload, sizeof sent);
    /* And it truly wraps: its second part lies at the beginning. */
    TEST_ASSERT_EQUAL_MEMORY(sent + 3 * CELL, ring.lanes[0].data, 5 * CELL);
    rbi_ring_release(&ring, &record);
    get("behind");
    assert_empty();
}

static void test_sizes_around_the_inline_and_cell_boundaries_use_the_cells_they_need(void)
{
    static const struct { uint64_t size, cells; bool in_slot; } cases[] = {
        {0, 1, true},         {1, 1, true},         {47, 1, true},           {48, 1, true},
        {49, 1, false},       {CELL - 1, 1, false}, {CELL, 1, false},        {CELL + 1, 2, false},
        {2 * CELL, 2, false}, {2 * CELL + 1, 3, false}, {16 * CELL, 16, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        small_ring();
        uint64_t size = cases[i].size;
        ASSERT_DONE(put_number(i, size));
        TEST_ASSERT_EQUAL_UINT64(cases[i].cells * CELL, rbi_ring_used_bytes(&ring));
        TEST_ASSERT_EQUAL_UINT64(SMALL_RING + cases[i].cells, tail());
        struct rbi_record record;
        ASSERT_DONE(rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
        TEST_ASSERT_EQUAL_UINT64(size, record.size);
        TEST_ASSERT_TRUE(tells_number(record.payload, size, i));
        TEST_ASSERT_EQUAL(cases[i].in_slot, record.payload == slots[0].payload);
        rbi_ring_release(&ring, &record);
        assert_empty();
    }
}

static void test_the_largest_message_fits_wherever_an_empty_ring_stands(void)
{
    for (uint64_t start = SMALL_RING; start < 2 * SMALL_RING; start++) {
        start_ring(SMALL_RING_LOG2, start, 0);
        uint64_t largest = rbi_ring_max_payload(&ring);
        TEST_ASSERT_EQUAL_UINT64(SMALL_RING * CELL / 2, largest);
        ASSERT_DONE(put_number(7, largest));
        assert_claim(RBI_RING_FULL, largest); /* one cell is kept free */
        ASSERT_DONE(put_number(8, largest - CELL));
        assert_claim(RBI_RING_FULL, 0);
        get_number(7, largest);
        get_number(8, largest - CELL);
        assert_empty();
    }
}

/* ---- full ---- */

static void test_a_ring_is_full_exactly_at_its_capacity(void)
{
    small_ring();
    fill_with_one_cell_messages(0, FULL_RING - 1);
    TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, CELL));
    TEST_ASSERT_FALSE(rbi_ring_has_room(&ring, CELL + 1));
    assert_claim(RBI_RING_FULL, CELL + 1);
    fill_with_one_cell_messages(FULL_RING - 1, 1);
    TEST_ASSERT_FALSE(rbi_ring_has_room(&ring, 0));
    assert_claim(RBI_RING_FULL, 0);
    assert_count(FULL_RING);
    TEST_ASSERT_EQUAL_UINT64(FULL_RING * CELL, rbi_ring_used_bytes(&ring));
    get_number(0, 1);
    TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, 0));
    fill_with_one_cell_messages(FULL_RING, 1);
    for (uint64_t number = 1; number <= FULL_RING; number++) get_number(number, 1);
    assert_empty();
}

static void test_a_full_ring_gains_no_room_while_its_oldest_message_is_held(void)
{
    small_ring();
    fill_with_one_cell_messages(0, FULL_RING);
    struct rbi_record oldest;
    ASSERT_DONE(rbi_ring_take(&ring, &oldest, CONSUMER, UINT64_MAX));
    for (uint64_t number = 1; number < FULL_RING; number++) get_number(number, 1);
    assert_claim(RBI_RING_FULL, 0);
    assert_count(0);
    rbi_ring_release(&ring, &oldest);
    assert_empty();
    fill_with_one_cell_messages(0, FULL_RING);
    assert_count(FULL_RING);
}

static void test_max_items_is_exact_and_the_room_of_a_taken_message_is_free_at_once(void)
{
    static const uint64_t bounds[] = {1, 10, FULL_RING};
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        uint64_t bound = bounds[i];
        small_ring_of(bound);
        fill_with_one_cell_messages(0, bound);
        assert_claim(RBI_RING_FULL, 0);
        TEST_ASSERT_FALSE(rbi_ring_has_room(&ring, 0));
        assert_count(bound);
        struct rbi_record oldest;
        ASSERT_DONE(rbi_ring_take(&ring, &oldest, CONSUMER, UINT64_MAX));
        assert_count(bound - 1);
        if (bound == FULL_RING) continue; /* there the cells are what is missing */
        TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, 0));
        fill_with_one_cell_messages(bound, 1);
        assert_claim(RBI_RING_FULL, 0);
        rbi_ring_release(&ring, &oldest);
        for (uint64_t number = 1; number <= bound; number++) get_number(number, 1);
        assert_empty();
    }
}

static void test_max_items_counts_what_is_being_written(void)
{
    small_ring_of(2);
    put("a");
    struct rbi_record b = claim("b");
    assert_claim(RBI_RING_FULL, 0);
    publish(&b);
    assert_claim(RBI_RING_FULL, 0);
    get("a");
    get("b");
    assert_empty();
}

static void test_max_items_counts_skipped_and_returned_messages(void)
{
    small_ring_of(2);
    struct rbi_record a = claim("a");
    put("b");
    struct rbi_record b = take("b");
    TEST_ASSERT_EQUAL_INT(RBI_KIND_SKIPPED, kind_of(&a));
    put("c");
    assert_claim(RBI_RING_FULL, 0); /* a, skipped, and c */
    publish(&a);
    assert_claim(RBI_RING_FULL, 0); /* a, returned, and c */
    rbi_ring_give_back(&ring, &b);
    assert_claim(RBI_RING_FULL, 0); /* one more than fits */
    assert_count(3);
    get("a");
    assert_claim(RBI_RING_FULL, 0);
    get("b");
    put("d");
    get("c");
    get("d");
    assert_empty();
}

static void test_max_items_does_not_count_a_claim_that_was_given_up(void)
{
    small_ring_of(2);
    put("a");
    struct rbi_record b = claim("b");
    ASSERT_DONE(rbi_ring_void(&ring, &b, PRODUCER));
    assert_count(1);
    put("c"); /* one message waits, so there is room for one more */
    assert_claim(RBI_RING_FULL, 0);
    get("a");
    get("c");
    assert_empty();
}

/* ---- wraps ---- */

/** Several laps of messages of many sizes, with the queue filling and draining on the way. */
static void run_for_laps(uint32_t laps)
{
    static struct { uint64_t number, size; } waiting[1 << 12];
    const uint64_t ring_cells = (uint64_t)1 << ring.cells_log2;
    uint64_t cells_put = 0, put_count = 0, get_count = 0, seed = ring.cells_log2;
    const uint64_t longest = ring_cells < 64 ? 4 * CELL : ring_cells / 32 * CELL;
    while (cells_put < laps * ring_cells) {
        uint64_t depth = random_below(&seed, 24) + 1;
        while (put_count - get_count < depth) {
            uint64_t size = random_below(&seed, 2) ? random_below(&seed, 100) : random_below(&seed, longest);
            uint64_t before = tail();
            enum rbi_ring_outcome outcome = put_number(put_count, size);
            if (outcome == RBI_RING_FULL) break;
            ASSERT_DONE(outcome);
            waiting[put_count % (1 << 12)].size = size;
            put_count++;
            cells_put += (tail() - before) & (((uint64_t)1 << (63 - ring.cells_log2)) - 1);
        }
        assert_count(put_count - get_count);
        uint64_t rest = random_below(&seed, depth);
        while (put_count - get_count > rest) {
            get_number(get_count, waiting[get_count % (1 << 12)].size);
            get_count++;
        }
        assert_count(put_count - get_count);
    }
    while (get_count < put_count) {
        get_number(get_count, waiting[get_count % (1 << 12)].size);
        get_count++;
    }
    assert_empty();
}

static const uint32_t ring_sizes_log2[] = {5, 12, 20};
enum { RING_SIZES = sizeof ring_sizes_log2 / sizeof *ring_sizes_log2 };

static void run_across(uint32_t cells_log2, uint64_t wrap)
{
    const uint64_t ring_cells = (uint64_t)1 << cells_log2;
    const uint64_t starts[] = {wrap - 1, wrap - 3, wrap - ring_cells, wrap - ring_cells - 5};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        start_ring(cells_log2, starts[i], 0);
        run_for_laps(3);
    }
}

static void test_a_ring_works_across_the_wrap_of_its_slot_index(void)
{
    for (int i = 0; i < RING_SIZES; i++) run_across(ring_sizes_log2[i], (uint64_t)5 << ring_sizes_log2[i]);
}

static void test_a_ring_works_across_the_wrap_of_the_lap_in_its_words(void)
{
    /* The lap has 48 - cells_log2 bits: it wraps at position 2^48, where positions reach that far. */
    for (int i = 0; i < RING_SIZES; i++)
        if (63 - ring_sizes_log2[i] > 48) run_across(ring_sizes_log2[i], (uint64_t)1 << 48);
}

static void test_a_ring_works_across_the_wrap_of_its_positions(void)
{
    for (int i = 0; i < RING_SIZES; i++) run_across(ring_sizes_log2[i], (uint64_t)1 << (63 - ring_sizes_log2[i]));
}

static void test_a_ring_works_across_the_wrap_of_its_item_counts(void)
{
    for (int i = 0; i < RING_SIZES; i++) {
        uint32_t position_bits = 63 - ring_sizes_log2[i];
        start_ring(ring_sizes_log2[i], (uint64_t)1 << ring_sizes_log2[i], 40);
        uint64_t cursor = ((uint64_t)2 << ring_sizes_log2[i]) - 3; /* items: all but three before the wrap */
        cursor = cursor << position_bits | tail();
        rbi_store_total64(&cursors->tail, cursor);
        rbi_store_total64(&cursors->head, cursor);
        run_for_laps(2);
    }
}

static void test_every_wrap_is_crossed_with_irregular_records_around_it(void)
{
    for (int i = 0; i < RING_SIZES; i++) {
        const uint64_t wraps[] = {(uint64_t)3 << ring_sizes_log2[i], (uint64_t)1 << 48, (uint64_t)1 << (63 - ring_sizes_log2[i])};
        for (int w = 0; w < 3; w++)
            for (uint64_t before = 1; before <= 5; before++) {
                start_ring(ring_sizes_log2[i], wraps[w] - before, 0);
                struct rbi_record skipped = claim("late"), void_claim = claim("never");
                put("a");
                put("b");
                struct rbi_record a = take("a");
                rbi_ring_give_back(&ring, &a);
                ASSERT_DONE(rbi_ring_void(&ring, &void_claim, PRODUCER));
                publish(&skipped);
                assert_count(3);
                get("late");
                struct rbi_record again = take_as(OTHER, "a");
                TEST_ASSERT_EQUAL_UINT64(a.position, again.position);
                ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
                assert_count(2);
                get("a");
                get("b");
                assert_empty();
            }
    }
}

static void test_memory_that_was_never_written_is_no_record_also_where_the_lap_is_zero(void)
{
    start_ring(SMALL_RING_LOG2, (uint64_t)1 << 48, 0); /* lap 0 in words: what zero bytes say */
    assert_empty();
    put("a");
    assert_count(1);
    get("a");
    assert_empty();
}

static void test_irregular_follows_reclaim_so_that_it_never_seems_to_lie_ahead(void)
{
    start_ring(5, 1 << 5, 0);
    rbi_store_total64(&cursors->irregular, tail() - 1000 * (1 << 5)); /* nothing irregular for a thousand laps */
    for (int i = 0; i < 5 * (1 << 5); i++) {
        put("a");
        get("a");
    }
    TEST_ASSERT_TRUE(tail() - rbi_load_total64(&cursors->irregular) <= 3 * (1 << 5));
}

/* ---- lagging cursors ---- */

static void test_a_lagging_tail_is_moved_by_the_next_claim(void)
{
    small_ring();
    uint64_t before = rbi_load_total64(&cursors->tail);
    struct rbi_record a = claim("a");
    rbi_store_total64(&cursors->tail, before); /* as if its producer had stopped right after its claim */
    struct rbi_record b = claim_as(OTHER, "b");
    TEST_ASSERT_EQUAL_UINT64(a.position + 1, b.position);
    TEST_ASSERT_EQUAL_UINT64(a.position + 2, tail());
    publish(&a);
    ASSERT_DONE(rbi_ring_publish(&ring, &b, OTHER));
    assert_count(2);
    get("a");
    get("b");
    assert_empty();
}

static void test_a_message_at_a_lagging_tail_can_be_taken(void)
{
    small_ring();
    uint64_t before = rbi_load_total64(&cursors->tail);
    put("a");
    rbi_store_total64(&cursors->tail, before);
    get("a");
    put("b");
    get("b");
    assert_empty();
}

static void test_a_lagging_tail_at_a_full_ring_does_not_let_anybody_claim_too_much(void)
{
    small_ring();
    fill_with_one_cell_messages(0, FULL_RING - 1);
    uint64_t before = rbi_load_total64(&cursors->tail);
    fill_with_one_cell_messages(FULL_RING - 1, 1);
    rbi_store_total64(&cursors->tail, before);
    assert_claim(RBI_RING_FULL, 0);
    for (uint64_t number = 0; number < FULL_RING; number++) get_number(number, 1);
    assert_empty();
}

static void test_a_lagging_head_is_moved_by_the_next_take(void)
{
    small_ring();
    put("a");
    put("b");
    put("c");
    uint64_t before = rbi_load_total64(&cursors->head);
    struct rbi_record a = take("a");
    rbi_store_total64(&cursors->head, before); /* as if its consumer had stopped right after its take */
    struct rbi_record b = take_as(OTHER, "b");
    TEST_ASSERT_EQUAL_UINT64(a.position + 2, head());
    rbi_ring_release(&ring, &b);
    rbi_ring_release(&ring, &a);
    get("c");
    assert_empty();
}

static void test_reclaim_takes_a_lagging_head_along_instead_of_passing_it(void)
{
    small_ring();
    put("a");
    put("b");
    uint64_t before = rbi_load_total64(&cursors->head);
    get("a");
    rbi_store_total64(&cursors->head, before);
    rbi_ring_used_bytes(&ring); /* which looks what can be reclaimed */
    TEST_ASSERT_EQUAL_UINT64(head(), reclaimed());
    assert_count(1);
    /* The cells can be used again, and head is not fooled by what is in them. */
    fill_with_one_cell_messages(0, FULL_RING - 1);
    assert_claim(RBI_RING_FULL, 0);
    get("b");
    for (uint64_t number = 0; number < FULL_RING - 1; number++) get_number(number, 1);
    assert_empty();
}

/* ---- claims at head ---- */

static void test_a_claim_at_head_with_nothing_behind_is_pending_and_stays_a_claim(void)
{
    small_ring();
    struct rbi_record a = claim("a"), b = claim("b");
    assert_take(RBI_RING_PENDING);
    TEST_ASSERT_FALSE(rbi_ring_may_take(&ring));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_CLAIMED, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_CLAIMED, kind_of(&b));
    publish(&a);
    get("a");
    assert_take(RBI_RING_PENDING);
    publish(&b);
    get("b");
    assert_empty();
}

static void test_claims_before_a_message_are_skipped_and_the_message_is_taken(void)
{
    small_ring();
    struct rbi_record a = claim("a"), b = claim_as(OTHER, "b");
    put("c");
    get("c");
    TEST_ASSERT_EQUAL_INT(RBI_KIND_SKIPPED, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_SKIPPED, kind_of(&b));
    assert_count(0);
    assert_take(RBI_RING_EMPTY);
    publish(&a);
    ASSERT_DONE(rbi_ring_publish(&ring, &b, OTHER));
    get("a");
    get("b");
    assert_empty();
}

static void test_a_message_published_late_is_delivered_before_younger_ones(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    put("b");
    put("c");
    get("b");
    publish(&a);
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&a));
    TEST_ASSERT_TRUE(hint());
    TEST_ASSERT_TRUE(rbi_ring_may_take(&ring));
    put("d");
    assert_count(3);
    get("a");
    get("c");
    get("d");
    assert_empty();
}

static void test_a_message_published_late_is_delivered_also_if_head_still_stands_at_it(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    put("b");
    rbi_store_total64(&cursors->irregular, a.position + 1);
    write_word(a.position, a.cells, PRODUCER, RBI_KIND_SKIPPED); /* as if its consumer had stopped right after marking it */
    publish(&a);
    get("a");
    get("b");
    assert_empty();
}

static void test_a_skipped_claim_that_is_given_up_is_never_delivered(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    put("b");
    get("b");
    ASSERT_DONE(rbi_ring_void(&ring, &a, PRODUCER));
    TEST_ASSERT_FALSE(hint());
    assert_empty();
    put("c");
    get("c");
    assert_empty();
}

static void test_a_claim_that_is_given_up_is_passed_over_wherever_it_lies(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    ASSERT_DONE(rbi_ring_void(&ring, &a, PRODUCER));
    assert_empty();
    put("b");
    struct rbi_record c = claim("c");
    put("d");
    ASSERT_DONE(rbi_ring_void(&ring, &c, PRODUCER));
    assert_count(2);
    get("b");
    get("d");
    assert_empty();
}

static void test_a_patient_consumer_takes_in_order_if_the_claim_is_published_meanwhile(void)
{
    small_ring();
    ring.patience = 1000;
    struct rbi_record a = claim("a");
    put("b");
    publish(&a);
    get("a");
    get("b");
    TEST_ASSERT_FALSE(hint());
    assert_empty();
}

static void test_a_claim_whose_word_somebody_overwrote_cannot_be_published(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    write_word(a.position, a.cells, OTHER, RBI_KIND_CLAIMED);
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_publish(&ring, &a, PRODUCER));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_void(&ring, &a, PRODUCER));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_CLAIMED, kind_of(&a));
}

/* ---- give back, and the hint ---- */

static void test_a_message_given_back_is_delivered_before_younger_ones(void)
{
    small_ring();
    put("a");
    put("b");
    struct rbi_record a = take("a");
    rbi_ring_give_back(&ring, &a);
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&a));
    assert_count(2);
    get("a");
    get("b");
    assert_empty();
}

static void test_messages_given_back_in_reverse_are_delivered_in_the_order_of_their_puts(void)
{
    small_ring();
    put("a");
    put("b");
    put("c");
    struct rbi_record a = take("a"), b = take("b"), c = take("c");
    rbi_ring_give_back(&ring, &c);
    rbi_ring_give_back(&ring, &a);
    rbi_ring_give_back(&ring, &b);
    get("a");
    get("b");
    get("c");
    assert_empty();
}

static void test_the_hint_is_set_with_a_new_version_and_cleared_by_who_finds_nothing(void)
{
    small_ring();
    TEST_ASSERT_EQUAL_UINT64(0, rbi_load_total64(returned_word()));
    put("a");
    put("b");
    struct rbi_record a = take("a");
    rbi_ring_give_back(&ring, &a);
    uint64_t first = rbi_load_total64(returned_word());
    TEST_ASSERT_TRUE(first & 1);
    a = take("a");
    rbi_ring_give_back(&ring, &a);
    uint64_t second = rbi_load_total64(returned_word());
    TEST_ASSERT_TRUE(second & 1);
    TEST_ASSERT_TRUE(second != first);
    get("a");
    TEST_ASSERT_TRUE(hint()); /* may stay set when there is none */
    get("b");
    TEST_ASSERT_EQUAL_UINT64(second & ~(uint64_t)1, rbi_load_total64(returned_word()));
    assert_empty();
}

static void test_a_hint_without_a_returned_message_is_harmless(void)
{
    small_ring();
    rbi_store_total64(returned_word(), 1);
    assert_take(RBI_RING_EMPTY);
    TEST_ASSERT_FALSE(hint());
    rbi_store_total64(returned_word(), UINT64_MAX); /* and its version wraps */
    put("a");
    struct rbi_record a = take("a");
    rbi_store_total64(returned_word(), UINT64_MAX - 1);
    rbi_ring_give_back(&ring, &a);
    TEST_ASSERT_TRUE(hint());
    get("a");
    assert_empty();
}

static void test_a_message_too_large_for_the_caller_stays_where_it_is(void)
{
    small_ring();
    struct rbi_record record;
    put("0123456789");
    put("b");
    uint64_t cursor = rbi_load_total64(&cursors->head);
    ASSERT_OUTCOME(RBI_RING_SMALL, rbi_ring_take(&ring, &record, CONSUMER, 10));
    TEST_ASSERT_EQUAL_UINT64(11, record.size);
    TEST_ASSERT_EQUAL_UINT64(cursor, rbi_load_total64(&cursors->head));
    assert_count(2);
    ASSERT_DONE(rbi_ring_take(&ring, &record, CONSUMER, 11));
    rbi_ring_give_back(&ring, &record);
    ASSERT_OUTCOME(RBI_RING_SMALL, rbi_ring_take(&ring, &record, CONSUMER, 10)); /* the same for a returned one */
    TEST_ASSERT_EQUAL_UINT64(11, record.size);
    TEST_ASSERT_TRUE(hint());
    assert_count(2);
    get("0123456789");
    get("b");
    assert_empty();
}

static void test_a_taken_record_is_found_by_its_owner_and_position_only(void)
{
    small_ring();
    struct rbi_record found;
    put("a");
    struct rbi_record a = take("a");
    struct rbi_record beside = a, a_lap_later = a, other_lane = a;
    beside.position++;
    a_lap_later.position += SMALL_RING;
    other_lane.lane++;
    ASSERT_DONE(rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&a)));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&other_lane)));
    TEST_ASSERT_EQUAL_STRING("a", found.payload);
    TEST_ASSERT_EQUAL_UINT64(a.size, found.size);
    TEST_ASSERT_EQUAL_UINT64(a.cells, found.cells);
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, OTHER, number_of(&a)));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&beside)));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&a_lap_later)));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, CONSUMER, UINT64_MAX));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_TAKEN, kind_of(&a));
    rbi_ring_release(&ring, &a);
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&a)));
    assert_empty();
}

/* ---- attempts, references, and what was returned elsewhere ---- */

static rbi_atomic64 *size_word(const struct rbi_record *record) { return &slots[record->position % SMALL_RING].size; }

static void test_every_take_of_a_message_is_counted_and_the_count_stays_at_its_ceiling(void)
{
    small_ring();
    put("a");
    put("b");
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        struct rbi_record a = take("a"), found;
        TEST_ASSERT_EQUAL_UINT32(attempt, a.attempts);
        ASSERT_DONE(rbi_ring_find_taken(&ring, &found, CONSUMER, number_of(&a)));
        TEST_ASSERT_EQUAL_UINT32(attempt, found.attempts);
        if (attempt == 2) ASSERT_DONE(rbi_ring_recover(&ring, CONSUMER)); /* a death counts, too */
        else rbi_ring_give_back(&ring, &a);
    }
    struct rbi_record a = take("a");
    rbi_ring_give_back(&ring, &a);
    rbi_store_relaxed64(size_word(&a), a.size | (uint64_t)(RBI_ATTEMPTS_MAX - 1) << RBI_ATTEMPTS_SHIFT);
    for (int i = 0; i < 3; i++) {
        a = take("a");
        TEST_ASSERT_EQUAL_UINT32(RBI_ATTEMPTS_MAX, a.attempts);
        rbi_ring_give_back(&ring, &a);
    }
    get("a");
    struct rbi_record b = take("b");
    TEST_ASSERT_EQUAL_UINT32(1, b.attempts);
    rbi_ring_release(&ring, &b);
    assert_empty();
}

static struct rbi_record claim_reference(uint64_t size, uint64_t run)
{
    struct rbi_record record;
    ASSERT_DONE(rbi_ring_claim(&ring, &record, PRODUCER, sizeof run));
    rbi_ring_refer(&record, size, run);
    return record;
}

static struct rbi_record take_reference(uint64_t size, uint64_t run)
{
    struct rbi_record record;
    uint64_t got = 0;
    ASSERT_DONE(rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
    TEST_ASSERT_TRUE(record.reference);
    TEST_ASSERT_EQUAL_UINT64(size, record.size);
    memcpy(&got, record.payload, sizeof got);
    TEST_ASSERT_EQUAL_UINT64(run, got);
    return record;
}

static void test_a_reference_takes_one_cell_and_brings_its_run_and_the_size_of_the_message(void)
{
    const uint64_t size = (uint64_t)64 << 30;
    small_ring();
    struct rbi_record record = claim_reference(size, 77);
    publish(&record);
    put("small");
    TEST_ASSERT_EQUAL_UINT64(2 * CELL, rbi_ring_used_bytes(&ring));
    ASSERT_OUTCOME(RBI_RING_SMALL, rbi_ring_take(&ring, &record, CONSUMER, size - 1));
    TEST_ASSERT_EQUAL_UINT64(size, record.size);
    record = take_reference(size, 77);
    TEST_ASSERT_EQUAL_UINT32(1, record.attempts);
    rbi_ring_give_back(&ring, &record);
    record = take_reference(size, 77); /* counting does not make it anything else */
    TEST_ASSERT_EQUAL_UINT32(2, record.attempts);
    rbi_ring_release(&ring, &record);
    struct rbi_record small = take("small");
    TEST_ASSERT_FALSE(small.reference);
    rbi_ring_release(&ring, &small);
    assert_empty();
}

static void test_a_reference_of_several_cells_is_corrupt(void)
{
    small_ring();
    TEST_ASSERT_EQUAL_INT(RBI_RING_OK, put_number(1, 2 * CELL));
    rbi_store_relaxed64(&slots[head() % SMALL_RING].size, RBI_REFERENCE | 8);
    assert_take(RBI_RING_CORRUPT);
}

static void assert_references(uint64_t expected)
{
    uint64_t records = UINT64_MAX;
    ASSERT_DONE(rbi_ring_references(&ring, &records));
    TEST_ASSERT_EQUAL_UINT64(expected, records);
}

static void test_references_are_counted_as_long_as_they_are_messages(void)
{
    small_ring();
    put("small");
    struct rbi_record a = claim_reference(100000, 1), b = claim_reference(100000, 2);
    assert_references(0); /* being written */
    publish(&a);
    publish(&b);
    assert_references(2);
    get("small");
    a = take_reference(100000, 1);
    assert_references(2);
    rbi_ring_give_back(&ring, &a);
    assert_references(2);
    a = take_reference(100000, 1);
    rbi_ring_release(&ring, &a);
    assert_references(1);
    b = take_reference(100000, 2);
    rbi_ring_release(&ring, &b);
    assert_references(0);
}

static void assert_fate(uint64_t number, enum rbi_kind kind, uint32_t owner, bool reference)
{
    uint32_t told_owner = UINT32_MAX;
    bool told_reference = !reference;
    TEST_ASSERT_EQUAL_INT(kind, rbi_ring_fate(&ring, number, &told_owner, &told_reference));
    TEST_ASSERT_EQUAL_UINT32(owner, told_owner);
    if (kind >= RBI_KIND_READY) TEST_ASSERT_EQUAL(reference, told_reference); /* before, the size is not yet written */
}

static void test_what_has_become_of_a_record_is_known_until_its_lap_is_over(void)
{
    small_ring();
    struct rbi_record a = claim_reference(100000, 1);
    uint64_t first = number_of(&a);
    assert_fate(first, RBI_KIND_CLAIMED, PRODUCER, true);
    publish(&a);
    assert_fate(first, RBI_KIND_READY, 0, true);
    a = take_reference(100000, 1);
    assert_fate(first, RBI_KIND_TAKEN, CONSUMER, true);
    rbi_ring_give_back(&ring, &a);
    assert_fate(first, RBI_KIND_RETURNED, 0, true);
    a = take_reference(100000, 1);
    rbi_ring_release(&ring, &a);
    assert_fate(first, RBI_KIND_RELEASED, 0, true);
    struct rbi_record b = claim("b");
    put("c");
    get("c");
    assert_fate(number_of(&b), RBI_KIND_SKIPPED, PRODUCER, false);
    ASSERT_DONE(rbi_ring_void(&ring, &b, PRODUCER));
    assert_fate(number_of(&b), RBI_KIND_RELEASED, 0, false);
    for (uint64_t number = 0; number < SMALL_RING; number++) {
        ASSERT_DONE(put_number(number, 1));
        get_number(number, 1);
    }
    assert_fate(first, RBI_KIND_NONE, 0, false);
    assert_fate(number_of(&b), RBI_KIND_NONE, 0, false);
}

static void test_the_fate_of_a_number_that_no_record_has_is_none(void)
{
    small_ring();
    put("a");
    assert_fate(head(), RBI_KIND_READY, 0, false);
    assert_fate(head() + 1, RBI_KIND_NONE, 0, false);
    assert_fate(head() + SMALL_RING, RBI_KIND_NONE, 0, false);
    assert_fate(head() | (uint64_t)1 << 60, RBI_KIND_NONE, 0, false); /* in another lane */
    assert_fate(head() | (uint64_t)RBI_LANES << 60, RBI_KIND_NONE, 0, false);
    assert_fate(UINT64_MAX, RBI_KIND_NONE, 0, false);
    rbi_store_relaxed64(&cursors->reserved_cells, 0); /* and where there are no pages, nobody looks */
    rbi_store_relaxed64(&ring.lanes[0].reserved_seen, 0);
    assert_fate(head(), RBI_KIND_NONE, 0, false);
}

static void test_a_ring_that_looks_aside_leaves_clearing_the_hint_to_its_caller(void)
{
    struct rbi_record record;
    small_ring();
    ring.looks_aside = true;
    assert_take(RBI_RING_EMPTY);
    rbi_ring_set_returned(&ring);
    TEST_ASSERT_TRUE(rbi_ring_some_returned(&ring));
    TEST_ASSERT_TRUE(rbi_ring_may_take(&ring));
    ASSERT_OUTCOME(RBI_RING_ASIDE, rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
    uint64_t seen = record.position;
    TEST_ASSERT_EQUAL_UINT64(rbi_load_total64(returned_word()), seen);
    rbi_ring_set_returned(&ring); /* something was returned after we looked */
    rbi_ring_clear_returned(&ring, seen);
    TEST_ASSERT_TRUE(hint());
    ASSERT_OUTCOME(RBI_RING_ASIDE, rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX));
    TEST_ASSERT_TRUE(record.position != seen);
    rbi_ring_clear_returned(&ring, record.position);
    TEST_ASSERT_FALSE(rbi_ring_some_returned(&ring));
    assert_empty();
}

static void test_a_ring_that_looks_aside_gives_what_was_returned_to_it_first_and_then_does_not_pass_the_hint_by(void)
{
    struct rbi_record record;
    small_ring();
    ring.looks_aside = true;
    put("a");
    put("b");
    struct rbi_record a = take("a");
    rbi_ring_give_back(&ring, &a);
    get("a");
    ASSERT_OUTCOME(RBI_RING_ASIDE, rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX)); /* before b, which is younger */
    rbi_ring_clear_returned(&ring, record.position);
    get("b");
    assert_empty();
}

/* ---- counting, and reclaim ---- */

static void test_the_count_is_exact_in_every_irregular_situation(void)
{
    small_ring();
    put("a");
    put("b");
    assert_count(2);
    struct rbi_record a = take("a");
    assert_count(1);
    rbi_ring_give_back(&ring, &a);
    assert_count(2); /* returned, ready */
    a = take("a");
    assert_count(1); /* taken a second time */
    struct rbi_record c = claim("c");
    put("d");
    struct rbi_record b = take("b");
    struct rbi_record d = take("d");
    assert_count(0); /* taken, taken, skipped, taken */
    publish(&c);
    assert_count(1);
    ASSERT_DONE(rbi_ring_recover(&ring, CONSUMER));
    assert_count(4);
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&b));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&d));
    struct rbi_record e = claim("e");
    put("f");
    ASSERT_DONE(rbi_ring_void(&ring, &e, PRODUCER));
    assert_count(5);
    get("a");
    get("b");
    get("c");
    get("d");
    assert_count(1);
    get("f");
    assert_empty();
    fill_with_one_cell_messages(0, FULL_RING); /* regular again, around the ring */
    assert_count(FULL_RING);
}

static void test_a_claim_being_written_is_not_skipped_for_nothing_when_it_is_the_only_one(void)
{
    small_ring();
    struct rbi_record a = claim("a");
    for (int i = 0; i < 3; i++) assert_take(RBI_RING_PENDING);
    publish(&a);
    TEST_ASSERT_EQUAL_INT(RBI_KIND_READY, kind_of(&a));
    assert_count(1);
    get("a");
    assert_empty();
}

static void test_the_census_counts_records_by_kind(void)
{
    small_ring();
    put("a");
    struct rbi_record a = take("a"), b = claim("b");
    put("c");
    (void)a;
    (void)b;
    uint64_t records = 0;
    ASSERT_DONE(rbi_ring_census(&ring, &records, 1u << RBI_KIND_TAKEN));
    TEST_ASSERT_EQUAL_UINT64(1, records);
    ASSERT_DONE(rbi_ring_census(&ring, &records, 1u << RBI_KIND_CLAIMED | 1u << RBI_KIND_READY));
    TEST_ASSERT_EQUAL_UINT64(2, records);
    ASSERT_DONE(rbi_ring_census(&ring, &records, 1u << RBI_KIND_RELEASED));
    TEST_ASSERT_EQUAL_UINT64(0, records);
}

/* ---- recovery ---- */

static void test_recovery_gives_up_the_claims_of_the_dead(void)
{
    small_ring();
    struct rbi_record a = claim_as(OTHER, "a");
    put("b");
    struct rbi_record c = claim_as(OTHER, "c");
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    assert_count(1);
    get("b");
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RELEASED, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RELEASED, kind_of(&c));
    assert_empty();
    put("d");
    get("d");
}

static void test_recovery_gives_up_skipped_claims_of_the_dead(void)
{
    small_ring();
    struct rbi_record a = claim_as(OTHER, "a");
    put("b");
    get("b");
    TEST_ASSERT_EQUAL_INT(RBI_KIND_SKIPPED, kind_of(&a));
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_FALSE(hint());
    assert_empty();
}

static void test_what_the_dead_had_taken_is_delivered_to_others_in_order(void)
{
    small_ring();
    put("a");
    put("b");
    put("c");
    struct rbi_record a = take_as(OTHER, "a"), b = take_as(OTHER, "b");
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&b));
    TEST_ASSERT_TRUE(hint());
    assert_count(3);
    get("a");
    get("b");
    get("c");
    assert_empty();
}

static void test_recovery_finds_a_claim_that_tail_has_not_passed(void)
{
    small_ring();
    put("a");
    uint64_t before = rbi_load_total64(&cursors->tail);
    struct rbi_record b = claim_as(OTHER, "b");
    rbi_store_total64(&cursors->tail, before);
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_UINT64(b.position + 1, tail());
    assert_count(1);
    put("c");
    get("a");
    get("c");
    assert_empty();
}

static void test_recovery_moves_a_head_that_the_dead_left_lagging(void)
{
    small_ring();
    put("a");
    put("b");
    uint64_t before = rbi_load_total64(&cursors->head);
    struct rbi_record a = take_as(OTHER, "a");
    rbi_store_total64(&cursors->head, before);
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_UINT64(a.position + 1, head());
    assert_count(2);
    get("a");
    get("b");
    assert_empty();
}

static void test_recovering_twice_changes_nothing_more(void)
{
    small_ring();
    put("a");
    put("b");
    struct rbi_record a = take_as(OTHER, "a"), c = claim_as(OTHER, "c");
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    struct rbi_slot before[SMALL_RING];
    memcpy(before, slots, sizeof before);
    uint64_t tail_before = rbi_load_total64(&cursors->tail), head_before = rbi_load_total64(&cursors->head);
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_MEMORY(before, slots, sizeof before);
    TEST_ASSERT_EQUAL_UINT64(tail_before, rbi_load_total64(&cursors->tail));
    TEST_ASSERT_EQUAL_UINT64(head_before, rbi_load_total64(&cursors->head));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RELEASED, kind_of(&c));
    assert_count(2);
    get("a");
    get("b");
    assert_empty();
}

static void test_recovery_leaves_the_records_of_others_alone(void)
{
    small_ring();
    put("a");
    put("b");
    struct rbi_record a = take("a"), b = take_as(OTHER, "b"), c = claim("c"), d = claim_as(OTHER, "d");
    put("e");
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_TAKEN, kind_of(&a));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RETURNED, kind_of(&b));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_CLAIMED, kind_of(&c));
    TEST_ASSERT_EQUAL_INT(RBI_KIND_RELEASED, kind_of(&d));
    rbi_ring_release(&ring, &a);
    publish(&c);
    get("b");
    get("c");
    get("e");
    assert_empty();
}

static void test_recovery_sets_the_hint_for_a_returned_message_that_it_only_meets(void)
{
    small_ring();
    put("a");
    struct rbi_record a = take_as(OTHER, "a");
    write_word(a.position, a.cells, 0, RBI_KIND_RETURNED); /* its recoverer died before it set the hint */
    rbi_store_total64(&cursors->irregular, a.position + 1);
    TEST_ASSERT_FALSE(hint());
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_TRUE(hint());
    get("a");
    assert_empty();
}

static void test_recovery_works_in_a_full_ring(void)
{
    small_ring();
    for (uint64_t number = 0; number < FULL_RING; number++) {
        struct rbi_record record;
        ASSERT_DONE(rbi_ring_claim(&ring, &record, number % 2 ? PRODUCER : OTHER, 1));
        write_number(record.payload, 1, number);
        if (number % 2) publish(&record);
    }
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    assert_count(FULL_RING / 2);
    for (uint64_t number = 1; number < FULL_RING; number += 2) get_number(number, 1);
    assert_empty();
    fill_with_one_cell_messages(0, FULL_RING);
}

/* ---- lanes ---- */

/** Fill the open lane behind the record at its reclaim with messages that are got again, so that this record alone is in the way. */
static void get_stuck(void)
{
    uint64_t number = 0;
    while (put_number(number, 1) == RBI_RING_OK) get_number(number++, 1);
    assert_claim(RBI_RING_FULL, 0);
}

static void test_a_record_held_in_a_ring_full_of_nothing_else_is_stuck_and_can_be_gone_round(void)
{
    small_ring();
    put("held");
    TEST_ASSERT_EQUAL_UINT64(0, rbi_ring_stuck_at(&ring, 0));
    struct rbi_record held = take("held");
    get_stuck();
    TEST_ASSERT_TRUE(rbi_ring_stuck_at(&ring, 0) != 0);
    TEST_ASSERT_TRUE(bypass());
    put("a");
    put("b");
    assert_count(2);
    get("a");
    get("b");
    TEST_ASSERT_EQUAL_UINT64(1, rbi_load_total64(&order.put_epoch));
    TEST_ASSERT_EQUAL_UINT64(1, rbi_load_total64(&order.get_epoch));
    rbi_ring_release(&ring, &held);
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_who_looks_for_room_sees_that_of_the_next_lane_where_one_was_closed(void)
{
    small_ring();
    put("held");
    struct rbi_record held = take("held");
    get_stuck();
    for (int round = 0; round < 2 * RBI_LANES; round++) { /* also into lanes that were in use before */
        TEST_ASSERT_FALSE(rbi_ring_has_room_for(&ring, 2, 2));
        TEST_ASSERT_TRUE(bypass());
        TEST_ASSERT_TRUE(rbi_ring_has_room_for(&ring, 2, 2));
        TEST_ASSERT_FALSE(rbi_ring_has_room_for(&ring, SMALL_RING, 2));
        put("next");
        struct rbi_record next = take("next");
        rbi_ring_release(&ring, &held);
        held = next;
        get_stuck();
    }
    rbi_ring_release(&ring, &held);
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_a_ring_full_of_messages_is_not_stuck(void)
{
    small_ring();
    fill_with_one_cell_messages(0, FULL_RING);
    TEST_ASSERT_EQUAL_UINT64(0, rbi_ring_stuck_at(&ring, 0));
    struct rbi_record held;
    ASSERT_DONE(rbi_ring_take(&ring, &held, CONSUMER, UINT64_MAX));
    TEST_ASSERT_EQUAL_UINT64(0, rbi_ring_stuck_at(&ring, 0)); /* full is what full means: messages wait behind it */
}

static void test_messages_of_a_closed_lane_come_before_those_of_the_next(void)
{
    small_ring();
    struct rbi_record late = claim("late");
    put("first");
    get("first");
    put("second");
    while (put_number(0, CELL) == RBI_RING_OK) {}
    TEST_ASSERT_TRUE(bypass());
    put("third");
    publish(&late); /* into the lane that is closed, and skipped there */
    get("late");
    get("second");
    for (int i = 0; i < FULL_RING - 3; i++) get_number(0, CELL);
    get("third");
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_what_is_given_back_in_a_closed_lane_is_delivered_before_the_next_lane(void)
{
    small_ring();
    put("held");
    struct rbi_record held = take_as(OTHER, "held");
    get_stuck();
    TEST_ASSERT_TRUE(bypass());
    put("younger");
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    TEST_ASSERT_EQUAL_UINT32(0, held.lane);
    assert_count(2);
    get("held");
    get("younger");
    assert_empty();
}

static void test_as_many_records_as_there_are_spare_lanes_can_be_gone_round_and_no_more(void)
{
    small_ring();
    struct rbi_record held[RBI_LANES];
    for (int lane = 0; lane < RBI_LANES; lane++) {
        put("held");
        held[lane] = take("held");
        TEST_ASSERT_EQUAL_UINT32(lane, held[lane].lane);
        get_stuck();
        TEST_ASSERT_EQUAL(lane < RBI_LANES - 1, bypass());
    }
    assert_claim(RBI_RING_FULL, 0);
    rbi_ring_release(&ring, &held[0]); /* the next lane in turn is quiet now */
    TEST_ASSERT_TRUE(bypass());
    put("goes on");
    get("goes on");
    for (int lane = 1; lane < RBI_LANES; lane++) rbi_ring_release(&ring, &held[lane]);
    put("all is well");
    get("all is well");
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_a_lane_is_not_used_again_before_consumers_have_left_it(void)
{
    small_ring();
    put("first");
    struct rbi_record first = take("first");
    TEST_ASSERT_TRUE(bypass());
    rbi_ring_release(&ring, &first); /* nothing is left in the first lane, but nobody has come to its END */
    for (int lane = 1; lane < RBI_LANES; lane++) {
        TEST_ASSERT_TRUE(lane == 1 || bypass());
        ASSERT_DONE(put_number((uint64_t)lane, 8));
    }
    TEST_ASSERT_FALSE(bypass());
    TEST_ASSERT_EQUAL_UINT64(0, rbi_load_total64(&order.get_epoch));
    get_number(1, 8); /* now they have */
    TEST_ASSERT_TRUE(bypass());
    ASSERT_DONE(put_number(RBI_LANES, 8));
    for (uint64_t number = 2; number <= RBI_LANES; number++) get_number(number, 8);
    assert_empty();
}

static void test_lanes_can_be_changed_more_often_than_an_end_can_count(void)
{
    small_ring();
    for (int epoch = 1; epoch <= RBI_OWNER_MAX + 2 * RBI_LANES; epoch++) {
        put("held");
        struct rbi_record held = take("held");
        TEST_ASSERT_TRUE(bypass());
        put("next");
        rbi_ring_release(&ring, &held);
        get("next");
        TEST_ASSERT_EQUAL_UINT64(epoch, rbi_load_total64(&order.get_epoch));
    }
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_max_items_holds_across_lanes(void)
{
    small_ring_of(3);
    put("held");
    struct rbi_record held = take("held");
    put("a");
    TEST_ASSERT_TRUE(bypass());
    put("b");
    put("c");
    assert_claim(RBI_RING_FULL, 0);
    rbi_ring_give_back(&ring, &held);
    assert_claim(RBI_RING_FULL, 0);
    get("held");
    assert_claim(RBI_RING_FULL, 0);
    get("a");
    put("d");
    get("b");
    get("c");
    get("d");
    assert_take(RBI_RING_EMPTY);
}

/* ---- pages ---- */

static void test_a_claim_beyond_the_reserved_pages_says_how_many_are_needed_and_changes_nothing(void)
{
    small_ring();
    rbi_store_relaxed64(&cursors->reserved_cells, 0);
    struct rbi_record record;
    uint64_t before = rbi_load_total64(&cursors->tail);
    assert_empty();
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 3 * CELL));
    TEST_ASSERT_EQUAL_UINT64(4, record.cells); /* with one more, where an END or a GAP could be written */
    TEST_ASSERT_EQUAL_UINT64(before, rbi_load_total64(&cursors->tail));
    ASSERT_DONE(raise_reserved(3));
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 3 * CELL));
    ASSERT_DONE(raise_reserved(4));
    ASSERT_DONE(put_number(1, 3 * CELL));
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 0));
    TEST_ASSERT_EQUAL_UINT64(5, record.cells);
    get_number(1, 3 * CELL);
    assert_empty();
}

static void test_a_claim_across_the_end_needs_pages_up_to_the_end_only(void)
{
    start_ring(SMALL_RING_LOG2, 2 * SMALL_RING - 2, 0);
    rbi_store_relaxed64(&cursors->reserved_cells, SMALL_RING - 2);
    struct rbi_record record;
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 5 * CELL));
    TEST_ASSERT_EQUAL_UINT64(SMALL_RING, record.cells);
    ASSERT_DONE(raise_reserved(SMALL_RING));
    ASSERT_DONE(put_number(1, 5 * CELL));
    get_number(1, 5 * CELL);
    assert_empty();
}

static void test_the_count_of_reserved_pages_only_grows_and_nonsense_is_corrupt(void)
{
    small_ring();
    rbi_store_relaxed64(&cursors->reserved_cells, 8);
    ASSERT_DONE(raise_reserved(4));
    TEST_ASSERT_EQUAL_UINT64(8, rbi_load_relaxed64(&cursors->reserved_cells));
    rbi_store_relaxed64(&cursors->reserved_cells, SMALL_RING + 1);
    ASSERT_OUTCOME(RBI_RING_CORRUPT, raise_reserved(SMALL_RING));
    assert_claim(RBI_RING_UNRESERVED, 0); /* believed to be none, not more than there are */
}

/* ---- beginning again where pages end ---- */

/** A ring of 32 cells, `reserved` of which have pages, and whose laps may end there. */
static void start_short_ring(uint64_t reserved, uint64_t max_items)
{
    small_ring_of(max_items);
    rbi_store_relaxed64(&cursors->reserved_cells, reserved);
    ring.least_lap = 1;
    ring.age_shift = 63;
}

static void short_ring(uint64_t reserved) { start_short_ring(reserved, 0); }

static uint64_t index_of_tail(void) { return tail() % SMALL_RING; }
static uint64_t lap_of_tail(void) { return tail() / SMALL_RING; }
static uint64_t reserved(void) { return rbi_load_relaxed64(&cursors->reserved_cells); }

/** Put and get, one at a time, reserving what a claim asks for. */
static void pass_through(uint64_t messages, uint64_t size)
{
    for (uint64_t number = 0; number < messages; number++) {
        struct rbi_record record;
        enum rbi_ring_outcome outcome;
        while ((outcome = rbi_ring_claim(&ring, &record, PRODUCER, size)) == RBI_RING_UNRESERVED) ASSERT_DONE(raise_reserved(record.cells));
        ASSERT_DONE(outcome);
        write_number(record.payload, size, number);
        publish(&record);
        assert_count(1);
        get_number(number, size);
        assert_empty();
    }
}

static void test_an_empty_ring_begins_again_where_its_pages_end(void)
{
    short_ring(12);
    pass_through(1000, 1);
    TEST_ASSERT_EQUAL_UINT64(12, reserved());
    TEST_ASSERT_GREATER_THAN_UINT64(1000 / 12, lap_of_tail());
    for (uint64_t slot = 12; slot < SMALL_RING; slot++) TEST_ASSERT_EQUAL_UINT64(0, slots[slot].word);
}

static void test_in_the_last_quarter_of_its_pages_an_empty_ring_begins_again(void)
{
    short_ring(16);
    for (int number = 0; number < 11; number++) {
        put("a");
        get("a");
    }
    put("a");
    TEST_ASSERT_EQUAL_UINT64(2, lap_of_tail());
    TEST_ASSERT_EQUAL_UINT64(1, index_of_tail());
    get("a");
    assert_empty();
}

static void test_two_at_a_time_do_not_miss_the_moment_at_which_the_ring_is_empty(void)
{
    short_ring(16);
    for (int number = 0; number < 100; number++) {
        put("a");
        put("b");
        get("a");
        get("b");
    }
    TEST_ASSERT_EQUAL_UINT64(16, reserved());
    assert_empty();
}

static void test_a_ring_that_is_not_empty_goes_on_beyond_its_pages(void)
{
    short_ring(8);
    put("held");
    struct rbi_record held = take("held"), record;
    for (int number = 1; number < 7; number++) {
        put("a");
        get("a");
    }
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 1));
    TEST_ASSERT_EQUAL_UINT64(9, record.cells);
    rbi_ring_release(&ring, &held);
    put("b");
    TEST_ASSERT_EQUAL_UINT64(2, lap_of_tail());
    TEST_ASSERT_EQUAL_UINT64(1, index_of_tail());
    get("b");
    assert_empty();
}

static void test_a_ring_goes_on_beyond_its_pages_until_they_are_worth_a_lap(void)
{
    short_ring(4);
    ring.least_lap = 8;
    pass_through(1000, 1);
    TEST_ASSERT_EQUAL_UINT64(8, reserved());
}

static void test_the_older_a_ring_is_the_longer_are_its_laps(void)
{
    short_ring(4);
    ring.age_shift = 2; /* in lap 32 the pages of 8 cells, in lap 128 all */
    pass_through(100, 1);
    TEST_ASSERT_LESS_THAN_UINT64(16, reserved());
    pass_through(10000, 1);
    TEST_ASSERT_EQUAL_UINT64(SMALL_RING, reserved());
}

static void test_short_laps_use_up_an_eighth_of_all_laps_at_most(void)
{
    for (uint32_t cells_log2 = RBI_CELLS_MIN_LOG2; cells_log2 <= RBI_CELLS_MAX_LOG2; cells_log2++) {
        struct rbi_ring view;
        rbi_ring_init(&view, &order, cells_log2, RBI_CELL_MIN_LOG2, 0);
        uint64_t bits_of_position = 63 - cells_log2, laps = (uint64_t)1 << (bits_of_position - cells_log2);
        if (laps > (uint64_t)1 << (48 - cells_log2)) laps = (uint64_t)1 << (48 - cells_log2);
        TEST_ASSERT_EQUAL_UINT64((uint64_t)1 << cells_log2, (laps / 8) >> view.age_shift);
    }
}

static void test_a_large_message_begins_again_only_if_it_fits_in_front(void)
{
    short_ring(8);
    put("a");
    get("a");
    struct rbi_record record;
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 8 * CELL)); /* with a slot behind it: 9 in front */
    TEST_ASSERT_EQUAL_UINT64(10, record.cells);
    TEST_ASSERT_EQUAL_UINT64(1, lap_of_tail());
    ASSERT_DONE(put_number(7, 7 * CELL));
    TEST_ASSERT_EQUAL_UINT64(2, lap_of_tail());
    TEST_ASSERT_EQUAL_UINT64(7, index_of_tail());
    get_number(7, 7 * CELL);
    assert_empty();
}

static void test_messages_of_any_sizes_one_at_a_time_need_pages_for_two_of_the_largest(void)
{
    static const uint64_t sizes[] = {1, 48, 49, 3 * CELL, 6 * CELL, CELL};
    short_ring(4);
    for (uint64_t seed = 1, number = 0; number < 2000; number++) pass_through(1, sizes[random_below(&seed, 6)]);
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(16, reserved());
}

static void test_a_gap_is_no_item_wherever_cursors_lag(void)
{
    start_short_ring(4, 1);
    for (int number = 0; number < 2; number++) {
        put("a");
        get("a");
    }
    TEST_ASSERT_EQUAL_UINT64(SMALL_RING + 2, tail());
    /* Its producer is stopped right after the compare-and-swap: no cursor has moved. */
    write_word(tail(), SMALL_RING - 2, 0, RBI_KIND_GAP);
    assert_count(0);
    TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, 1));
    TEST_ASSERT_FALSE(rbi_ring_ready_at_head(&ring));
    assert_take(RBI_RING_EMPTY);
    TEST_ASSERT_EQUAL_UINT64(2 * SMALL_RING, tail());
    TEST_ASSERT_EQUAL_UINT64(2 * SMALL_RING, head());
    assert_empty();
    put("b");
    assert_count(1);
    assert_claim(RBI_RING_FULL, 1); /* max_items */
    get("b");
    assert_empty();
}

static void test_a_gap_is_passed_by_whichever_call_meets_it(void)
{
    enum { CALLS = 7 };
    for (int call = 0; call < CALLS; call++) {
        short_ring(4);
        for (int number = 0; number < 2; number++) {
            put("a");
            get("a");
        }
        write_word(tail(), SMALL_RING - 2, 0, RBI_KIND_GAP);
        switch (call) {
        case 0: assert_take(RBI_RING_EMPTY); break;
        case 1: put("b"); break;
        case 2: ASSERT_DONE(rbi_ring_recover(&ring, OTHER)); break;
        case 3: TEST_ASSERT_EQUAL_UINT64(0, rbi_ring_used_bytes(&ring)); break;
        case 4: TEST_ASSERT_TRUE(rbi_ring_make_do(&ring, 1)); put("b"); break;
        case 5: rbi_ring_look_ahead(&ring, 2); put("b"); break;
        case 6: TEST_ASSERT_TRUE(rbi_ring_has_room(&ring, 1)); put("b"); break;
        }
        TEST_ASSERT_EQUAL_UINT64(2, lap_of_tail());
        if (call == 1 || call >= 4) get("b");
        assert_empty();
        put("c");
        get("c");
        assert_empty();
    }
}

static void test_a_claim_that_stands_where_pages_end_is_no_reason_to_ask_for_more(void)
{
    short_ring(4);
    for (int number = 0; number < 2; number++) {
        put("a");
        get("a");
    }
    /* Another producer has claimed the last cell that may be claimed, and not moved tail. */
    write_word(tail(), 1, OTHER, RBI_KIND_CLAIMED);
    struct rbi_record record;
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_claim(&ring, &record, PRODUCER, 1)); /* behind it, for that is in use */
    TEST_ASSERT_EQUAL_UINT64(5, record.cells);
    TEST_ASSERT_EQUAL_UINT64(SMALL_RING + 3, tail());
    ASSERT_DONE(rbi_ring_recover(&ring, OTHER));
    put("b");
    TEST_ASSERT_EQUAL_UINT64(2 * SMALL_RING + 1, tail());
    get("b");
    assert_empty();
}

static void test_what_was_claimed_and_voided_is_not_in_the_way_of_beginning_again(void)
{
    short_ring(4);
    for (int number = 0; number < 100; number++) {
        struct rbi_record record = claim("void");
        ASSERT_DONE(rbi_ring_void(&ring, &record, PRODUCER));
        assert_count(0);
    }
    TEST_ASSERT_EQUAL_UINT64(4, reserved());
    put("a");
    get("a");
    assert_empty();
}

static void test_what_was_given_back_is_found_and_the_ring_does_not_begin_again_before(void)
{
    short_ring(4);
    put("a");
    struct rbi_record a = take("a");
    rbi_ring_give_back(&ring, &a);
    put("b");
    put("c");
    assert_claim(RBI_RING_UNRESERVED, 1);
    get("a");
    get("b");
    assert_claim(RBI_RING_UNRESERVED, 1);
    get("c");
    put("d");
    TEST_ASSERT_EQUAL_UINT64(2, lap_of_tail());
    get("d");
    assert_empty();
}

static void test_laps_are_cut_short_around_the_end_of_every_field(void)
{
    /* The last lap of all; the last that fits into a word; the last before a position's highest bit changes. */
    const uint64_t last[] = {(uint64_t)1 << (63 - SMALL_RING_LOG2), (uint64_t)1 << 48, (uint64_t)1 << (62 - SMALL_RING_LOG2)};
    for (size_t i = 0; i < sizeof last / sizeof *last; i++) {
        for (uint64_t before = 1; before <= 3; before++) {
            start_ring(SMALL_RING_LOG2, last[i] - before * SMALL_RING, 0);
            rbi_store_relaxed64(&cursors->reserved_cells, 12);
            ring.least_lap = 1;
            ring.age_shift = 63;
            pass_through(200, 1);
            pass_through(50, 5 * CELL);
            TEST_ASSERT_LESS_OR_EQUAL_UINT64(16, reserved());
        }
    }
}

static void test_the_items_of_cursors_wrap_while_laps_are_short(void)
{
    short_ring(6);
    for (uint64_t number = 0; number < 8 * SMALL_RING; number++) { /* they count to twice the cells */
        put("a");
        put("b");
        assert_count(2);
        get("a");
        get("b");
        assert_empty();
    }
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(8, reserved());
}

static void test_a_lane_is_closed_where_pages_end_and_the_next_has_room(void)
{
    short_ring(4);
    put("held");
    struct rbi_record held = take("held");
    put("a");
    put("b");
    TEST_ASSERT_TRUE(bypass()); /* the END lies in the slot that is kept for it */
    put("c");
    get("a");
    get("b");
    get("c");
    rbi_ring_release(&ring, &held);
    assert_empty();
    TEST_ASSERT_EQUAL_UINT64(4, reserved());
}

static void test_a_lane_without_pages_is_not_gone_to_before_it_has_some(void)
{
    short_ring(4);
    for (int lane = 1; lane < RBI_LANES; lane++) rbi_store_relaxed64(&cursors[lane].reserved_cells, 0);
    struct rbi_record record;
    put("a");
    ASSERT_OUTCOME(RBI_RING_UNRESERVED, rbi_ring_bypass(&ring, 2 * CELL, &record));
    TEST_ASSERT_EQUAL_UINT32(1, record.lane);
    TEST_ASSERT_EQUAL_UINT64(3, record.cells);
    TEST_ASSERT_EQUAL_UINT64(0, order.put_epoch);
    put("b"); /* still here */
    ASSERT_DONE(rbi_ring_raise_reserved(&ring, 1, 3));
    ASSERT_DONE(rbi_ring_bypass(&ring, 2 * CELL, &record));
    ASSERT_DONE(put_number(1, 2 * CELL));
    get("a");
    get("b");
    get_number(1, 2 * CELL);
    assert_empty();
}

static void test_without_more_pages_a_ring_makes_do_with_those_it_has(void)
{
    short_ring(8);
    ring.least_lap = UINT64_MAX; /* laps are not cut short for less than that */
    for (int lane = 1; lane < RBI_LANES; lane++) rbi_store_relaxed64(&cursors[lane].reserved_cells, 0);
    for (uint64_t number = 0; number < 7; number++) ASSERT_DONE(put_number(number, 1));
    assert_claim(RBI_RING_UNRESERVED, 1);
    TEST_ASSERT_FALSE(rbi_ring_make_do(&ring, 1)); /* no room in front */
    get_number(0, 1);
    TEST_ASSERT_FALSE(rbi_ring_make_do(&ring, 1)); /* one cell stays free */
    get_number(1, 1);
    TEST_ASSERT_FALSE(rbi_ring_make_do(&ring, 2 * CELL));
    TEST_ASSERT_EQUAL_UINT64(1, lap_of_tail());
    TEST_ASSERT_TRUE(rbi_ring_make_do(&ring, 1));
    ASSERT_DONE(put_number(7, 1));
    assert_claim(RBI_RING_FULL, 1);
    assert_count(6);
    for (uint64_t number = 2; number < 8; number++) get_number(number, 1);
    assert_empty();
    TEST_ASSERT_EQUAL_UINT64(8, reserved());
}

static void test_without_more_pages_an_empty_ring_takes_a_message_for_ever(void)
{
    short_ring(8);
    ring.least_lap = UINT64_MAX;
    for (int lane = 1; lane < RBI_LANES; lane++) rbi_store_relaxed64(&cursors[lane].reserved_cells, 0);
    static const uint64_t sizes[] = {1, 2 * CELL, 7 * CELL, 5 * CELL};
    for (uint64_t number = 0; number < 1000; number++) {
        uint64_t size = sizes[number % 4];
        enum rbi_ring_outcome outcome = put_number(number, size);
        if (outcome == RBI_RING_UNRESERVED) {
            TEST_ASSERT_TRUE(rbi_ring_make_do(&ring, size));
            outcome = put_number(number, size);
        }
        ASSERT_DONE(outcome);
        get_number(number, size);
        assert_empty();
    }
    TEST_ASSERT_EQUAL_UINT64(8, reserved());
}

static void test_without_more_pages_here_puts_go_on_in_a_lane_that_has_them(void)
{
    short_ring(4);
    ring.least_lap = UINT64_MAX;
    put("a");
    put("b");
    put("c");
    assert_claim(RBI_RING_UNRESERVED, 1);
    TEST_ASSERT_TRUE(rbi_ring_make_do(&ring, 1));
    put("d");
    get("a");
    get("b");
    get("c");
    get("d");
    assert_empty();
}

static void test_a_batch_begins_again_as_a_whole(void)
{
    short_ring(16);
    for (int batch = 0; batch < 100; batch++) {
        rbi_ring_look_ahead(&ring, 7);
        for (uint64_t number = 0; number < 7; number++) ASSERT_DONE(put_number(number, 1));
        for (uint64_t number = 0; number < 7; number++) get_number(number, 1);
    }
    assert_empty();
    TEST_ASSERT_EQUAL_UINT64(16, reserved());
}

static void test_gaps_that_another_program_wrote_end_every_call(void)
{
    short_ring(SMALL_RING);
    struct rbi_record record;
    uint64_t seed = 1;
    for (int round = 0; round < 200; round++) {
        for (uint64_t slot = 0; slot < SMALL_RING; slot++) {
            uint64_t at = tail() - index_of_tail() + slot + random_below(&seed, 2) * SMALL_RING;
            write_word(at, random_below(&seed, SMALL_RING), 0, RBI_KIND_GAP);
        }
        rbi_store_relaxed64(&cursors->reserved_cells, random_below(&seed, SMALL_RING + 2));
        rbi_ring_claim(&ring, &record, PRODUCER, 1);
        rbi_ring_make_do(&ring, 1);
        rbi_ring_look_ahead(&ring, 5);
        rbi_ring_take(&ring, &record, CONSUMER, UINT64_MAX);
        rbi_ring_has_room(&ring, 1);
        rbi_ring_bypass(&ring, 1, &record);
        uint64_t items;
        rbi_ring_count(&ring, &items);
        rbi_ring_recover(&ring, OTHER);
    }
}

/* ---- shared memory that somebody wrote over ---- */

static void test_a_record_of_no_cells_is_corrupt_to_everybody(void)
{
    small_ring();
    put("a");
    uint64_t records, position = head();
    static const uint32_t kinds[] = {RBI_KIND_CLAIMED, RBI_KIND_READY, RBI_KIND_TAKEN, RBI_KIND_RETURNED, RBI_KIND_RELEASED};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        write_word(position, 0, 0, kinds[i]);
        assert_take(RBI_RING_CORRUPT);
        ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_recover(&ring, OTHER));
        ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_census(&ring, &records, 1));
    }
    write_word(tail(), 0, 0, RBI_KIND_CLAIMED);
    assert_claim(RBI_RING_CORRUPT, 0);
}

static void test_an_end_that_leads_round_all_lanes_is_corrupt_and_not_followed_for_ever(void)
{
    /* By as many epochs as there are tags: the END would be found to end the epoch that it leads to, and so on. */
    uint64_t records;
    start_ring(13, UINT64_C(1) << 13, 0);
    for (uint64_t steps = 4096; steps >= RBI_LANES; steps /= 4) {
        write_word(tail(), steps, 0, RBI_KIND_END);
        assert_claim(RBI_RING_CORRUPT, 0);
        assert_take(RBI_RING_CORRUPT);
        rbi_store_relaxed64(&cursors->tail, (UINT64_C(1) << 13) + 1);
        ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_census(&ring, &records, 1));
        rbi_store_relaxed64(&cursors->tail, UINT64_C(1) << 13);
        TEST_ASSERT_EQUAL_UINT64(0, order.put_epoch + order.get_epoch);
    }
}

static void test_a_word_of_an_unknown_kind_is_corrupt_to_a_taker(void)
{
    small_ring();
    put("a");
    for (uint32_t kind = RBI_KIND_GAP + 1; kind <= 15; kind++) {
        write_word(head(), 1, 0, kind);
        assert_take(RBI_RING_CORRUPT);
    }
}

static void test_a_size_beyond_the_cells_of_its_record_is_corrupt_and_not_read(void)
{
    small_ring();
    static const uint64_t sizes[] = {CELL + 1, SMALL_RING * CELL, RBI_SIZE_MASK, RBI_REFERENCE - 1};
    put("a");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        rbi_store_relaxed64(&slots[head() % SMALL_RING].size, sizes[i]);
        assert_take(RBI_RING_CORRUPT);
    }
    TEST_ASSERT_EQUAL_INT(RBI_KIND_READY, rbi_ring_kind_at(&ring, head()));
}

static void test_a_reclaim_beyond_tail_is_corrupt_to_a_claim(void)
{
    small_ring();
    put("a");
    rbi_store_total64(&cursors->reclaim, tail() + 3);
    rbi_store_relaxed64(reclaim_seen(), tail() + 3);
    assert_claim(RBI_RING_CORRUPT, 0);
}

static void test_a_head_beyond_tail_counts_as_empty(void)
{
    small_ring();
    put("a");
    const uint64_t items = (uint64_t)1 << (63 - SMALL_RING_LOG2);
    rbi_store_total64(&cursors->head, rbi_load_total64(&cursors->tail) + 2 * items + 5);
    assert_take(RBI_RING_EMPTY);
    assert_count(0);
}

static void test_a_reclaim_more_than_a_ring_behind_is_corrupt_to_a_walk(void)
{
    small_ring();
    put("a");
    uint64_t records;
    rbi_store_total64(&cursors->reclaim, tail() - SMALL_RING - 1);
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_census(&ring, &records, 1));
    ASSERT_OUTCOME(RBI_RING_CORRUPT, rbi_ring_recover(&ring, OTHER));
}

static volatile uint64_t sink; /* so that what is read for nothing is read all the same */

/** Everything a ring can be asked, once; what it answers does not matter. */
static void ask_everything(uint64_t *seed)
{
    struct rbi_record record;
    uint64_t count;
    uint32_t owner;
    bool reference;
    ring.looks_aside = random_below(seed, 2);
    if (rbi_ring_stuck_at(&ring, 0) || random_below(seed, 4) == 0) bypass();
    int room = rbi_ring_has_room(&ring, random_below(seed, SMALL_RING * CELL / 2 + 1)) + rbi_ring_may_take(&ring);
    (void)room;
    rbi_ring_used_bytes(&ring);
    rbi_ring_count(&ring, &count);
    rbi_ring_census(&ring, &count, (uint32_t)next_random(seed) & 0xff);
    rbi_ring_references(&ring, &count);
    rbi_ring_fate(&ring, next_random(seed) >> random_below(seed, 64), &owner, &reference);
    if (rbi_ring_some_returned(&ring)) rbi_ring_set_returned(&ring);
    for (int i = 0; i < 3; i++) {
        uint64_t size = random_below(seed, rbi_ring_max_payload(&ring) + 1);
        if (rbi_ring_claim(&ring, &record, PRODUCER, size) == RBI_RING_OK) {
            /* Written where it lies: a heap buffer of two data regions has all of it. */
            memset(record.payload, 0x5a, size);
            if (random_below(seed, 4) == 0) rbi_ring_refer(&record, next_random(seed) >> 24, next_random(seed));
            if (random_below(seed, 2)) rbi_ring_publish(&ring, &record, PRODUCER);
            else rbi_ring_void(&ring, &record, PRODUCER);
        }
        if (rbi_ring_take(&ring, &record, CONSUMER, random_below(seed, 2) ? UINT64_MAX : 100) == RBI_RING_OK) {
            /* Of a reference only the number of its run lies here. */
            uint64_t sum = 0, bytes = record.reference ? sizeof(uint64_t) : record.size;
            for (uint64_t b = 0; b < bytes; b++) sum += record.payload[b];
            sink = sum;
            if (random_below(seed, 2)) rbi_ring_release(&ring, &record);
            else rbi_ring_give_back(&ring, &record);
        }
        if (rbi_ring_find_taken(&ring, &record, CONSUMER, next_random(seed)) == RBI_RING_OK) rbi_ring_release(&ring, &record);
        rbi_ring_recover(&ring, (uint32_t)random_below(seed, 4));
    }
    raise_reserved(SMALL_RING);
}

/** A word that is garbage, or plausible. */
static uint64_t hostile_word(uint64_t *seed, uint64_t position)
{
    switch (random_below(seed, 6)) {
    case 0: return next_random(seed);
    case 1: return 0;
    default:
        return word(position, random_below(seed, 4) ? random_below(seed, 4) : random_below(seed, SMALL_RING),
                    (uint32_t)random_below(seed, 4), (uint32_t)random_below(seed, 9));
    }
}

static uint64_t hostile_cursor(uint64_t *seed, uint64_t position)
{
    switch (random_below(seed, 8)) {
    case 0: return next_random(seed);
    case 1: return 0;
    case 2: return UINT64_MAX;
    default:
        return (position + random_below(seed, 2 * SMALL_RING) - SMALL_RING) | (random_below(seed, 4) ? 0 : next_random(seed) << 58);
    }
}

static void make_lane_hostile(int lane, uint64_t *seed, uint64_t position)
{
    struct rbi_cursors *c = &cursors[lane];
    rbi_store_relaxed64(&c->reserved_cells, random_below(seed, 8) ? SMALL_RING : next_random(seed));
    rbi_store_relaxed64(&c->tail, hostile_cursor(seed, position));
    rbi_store_relaxed64(&c->head, hostile_cursor(seed, position));
    rbi_store_relaxed64(&c->reclaim, hostile_cursor(seed, position));
    rbi_store_relaxed64(&c->irregular, hostile_cursor(seed, position));
    for (uint64_t i = 0; i < SMALL_RING; i++) {
        uint64_t at = position / SMALL_RING * SMALL_RING + i + random_below(seed, 2) * SMALL_RING;
        struct rbi_slot *slot = &slots[lane * SMALL_RING + (int)i];
        rbi_store_relaxed64(&slot->word, hostile_word(seed, at));
        rbi_store_relaxed64(&slot->size, random_below(seed, 3) ? random_below(seed, 400) : next_random(seed));
    }
}

static void test_a_ring_of_garbage_ends_every_call_and_leads_nobody_out_of_bounds(void)
{
    /* All three parts on the heap, exactly as large as they are: AddressSanitizer sees one byte too far. */
    cursors = calloc(RBI_LANES, sizeof *cursors);
    slots = calloc(RBI_LANES * SMALL_RING, sizeof *slots);
    uint8_t *data = calloc(RBI_LANES * 2 * SMALL_RING, CELL);
    TEST_ASSERT_TRUE(cursors && slots && data);
    for (uint64_t round = 0; round < 10000; round++) {
        uint64_t seed = round;
        uint64_t position = random_below(&seed, 3) ? 5 * SMALL_RING + random_below(&seed, SMALL_RING) : next_random(&seed) >> 6;
        memset(cursors, 0, RBI_LANES * sizeof *cursors);
        view_ring(data, SMALL_RING_LOG2, position, random_below(&seed, 2) * 3);
        rbi_store_relaxed64(&order.returned, next_random(&seed) >> (random_below(&seed, 2) * 63));
        rbi_store_relaxed64(&order.put_epoch, random_below(&seed, 4) ? random_below(&seed, 6) : next_random(&seed));
        rbi_store_relaxed64(&order.get_epoch, random_below(&seed, 4) ? random_below(&seed, 6) : next_random(&seed));
        for (int lane = 0; lane < RBI_LANES; lane++) make_lane_hostile(lane, &seed, position);
        ask_everything(&seed);
    }
    free(data);
}

/* ---- random operations against a model too simple to be wrong ---- */

/* The model: every record ever claimed, in order, in an array.  A take goes to the oldest message that consumers have passed, else to
 * the oldest message there is, and passes all before it. */
enum model_state { BEING_WRITTEN, WAITING, HELD, OVER };
struct model_record {
    struct rbi_record record;
    enum model_state state;
    uint32_t owner;
    bool passed;
};
enum { MODEL_MAX = 20000, MODEL_OWNERS = 4 };
static struct model_record model[MODEL_MAX];
static uint64_t model_first, model_end; /* everything before model_first is over */

static void model_forget_what_is_over(void)
{
    while (model_first < model_end && model[model_first].state == OVER) model_first++;
}

static uint64_t model_cells(void)
{
    uint64_t cells = 0;
    for (uint64_t i = model_first; i < model_end; i++) cells += model[i].record.cells;
    return cells;
}

static uint64_t model_count(enum model_state state)
{
    uint64_t count = 0;
    for (uint64_t i = model_first; i < model_end; i++) count += model[i].state == state;
    return count;
}

/** One of the records in this state, or NULL. */
static struct model_record *model_pick(enum model_state state, uint64_t *seed)
{
    uint64_t count = model_count(state);
    if (count == 0) return NULL;
    uint64_t which = random_below(seed, count);
    for (uint64_t i = model_first;; i++)
        if (model[i].state == state && which-- == 0) return &model[i];
}

static void random_claim(uint64_t *seed)
{
    static const uint64_t sizes[] = {0, 1, 48, 49, 128, 129, 500, 2048};
    uint64_t size = sizes[random_below(seed, sizeof sizes / sizeof *sizes)];
    uint64_t cells = size <= RBI_INLINE_BYTES ? 1 : (size + CELL - 1) / CELL;
    uint32_t owner = (uint32_t)random_below(seed, MODEL_OWNERS) + 1;
    bool fits = model_cells() + cells < SMALL_RING;
    struct rbi_record record;
    TEST_ASSERT_EQUAL(fits, rbi_ring_has_room(&ring, size));
    ASSERT_OUTCOME(fits ? RBI_RING_OK : RBI_RING_FULL, rbi_ring_claim(&ring, &record, owner, size));
    if (!fits) return;
    TEST_ASSERT_EQUAL_UINT64(cells, record.cells);
    write_number(record.payload, size, model_end);
    model[model_end++] = (struct model_record){.record = record, .state = BEING_WRITTEN, .owner = owner};
}

static void random_publish(uint64_t *seed)
{
    struct model_record *claimed = model_pick(BEING_WRITTEN, seed);
    if (!claimed) return;
    ASSERT_DONE(rbi_ring_publish(&ring, &claimed->record, claimed->owner));
    claimed->state = WAITING;
}

static void random_void(uint64_t *seed)
{
    struct model_record *claimed = model_pick(BEING_WRITTEN, seed);
    if (!claimed) return;
    ASSERT_DONE(rbi_ring_void(&ring, &claimed->record, claimed->owner));
    claimed->state = OVER;
}

/** What a take must deliver, or NULL; *expected says what it answers. */
static struct model_record *model_next(enum rbi_ring_outcome *expected)
{
    *expected = RBI_RING_OK;
    for (uint64_t i = model_first; i < model_end; i++)
        if (model[i].passed && model[i].state == WAITING) return &model[i];
    for (uint64_t i = model_first; i < model_end; i++)
        if (model[i].state == WAITING) return &model[i];
    *expected = RBI_RING_EMPTY;
    for (uint64_t i = model_first; i < model_end; i++)
        if (!model[i].passed && model[i].state == BEING_WRITTEN) *expected = RBI_RING_PENDING;
    return NULL;
}

static void random_take(uint64_t *seed)
{
    enum rbi_ring_outcome expected;
    struct rbi_record record;
    uint32_t owner = (uint32_t)random_below(seed, MODEL_OWNERS) + 1;
    uint64_t limit = random_below(seed, 4) ? UINT64_MAX : random_below(seed, 600);
    struct model_record *next = model_next(&expected);
    if (next && next->record.size > limit) expected = RBI_RING_SMALL;
    enum rbi_ring_outcome outcome = rbi_ring_take(&ring, &record, owner, limit);
    ASSERT_OUTCOME(expected, outcome);
    if (next && !next->passed)
        for (struct model_record *before = &model[model_first]; before < next; before++) before->passed = true;
    if (expected == RBI_RING_SMALL) TEST_ASSERT_EQUAL_UINT64(next->record.size, record.size);
    if (expected != RBI_RING_OK) return;
    TEST_ASSERT_NOT_NULL(next);
    TEST_ASSERT_EQUAL_UINT64(next->record.position, record.position);
    TEST_ASSERT_EQUAL_UINT64(next->record.size, record.size);
    TEST_ASSERT_TRUE(tells_number(record.payload, record.size, (uint64_t)(next - model)));
    next->state = HELD;
    next->owner = owner;
    next->passed = true;
}

static void random_end_of_take(uint64_t *seed)
{
    struct model_record *held = model_pick(HELD, seed);
    if (!held) return;
    if (random_below(seed, 4)) {
        rbi_ring_release(&ring, &held->record);
        held->state = OVER;
    } else {
        rbi_ring_give_back(&ring, &held->record);
        held->state = WAITING;
    }
}

static void random_recovery(uint64_t *seed)
{
    uint32_t owner = (uint32_t)random_below(seed, MODEL_OWNERS) + 1;
    ASSERT_DONE(rbi_ring_recover(&ring, owner));
    for (uint64_t i = model_first; i < model_end; i++) {
        if (model[i].owner != owner) continue;
        if (model[i].state == BEING_WRITTEN) model[i].state = OVER;
        if (model[i].state == HELD) model[i].state = WAITING;
    }
}

/** Exact when nobody is in the middle of a put; who is may be counted already. */
static void model_check_count(void)
{
    uint64_t items = 0, waiting = model_count(WAITING);
    ASSERT_DONE(rbi_ring_count(&ring, &items));
    TEST_ASSERT_GREATER_OR_EQUAL_UINT64(waiting, items);
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(waiting + model_count(BEING_WRITTEN), items);
}

static void run_model(uint64_t seed, uint64_t position, int operations)
{
    start_ring(SMALL_RING_LOG2, position, 0);
    model_first = model_end = 0;
    for (int i = 0; i < operations && model_end < MODEL_MAX; i++) {
        switch (random_below(&seed, 16)) {
        case 0: random_void(&seed); break;
        case 1:
            if (random_below(&seed, 4) == 0) random_recovery(&seed);
            break;
        case 2:
        case 3:
        case 4:
        case 5: random_claim(&seed); break;
        case 6:
        case 7:
        case 8: random_publish(&seed); break;
        case 9:
        case 10:
        case 11:
        case 12: random_take(&seed); break;
        default: random_end_of_take(&seed); break;
        }
        model_forget_what_is_over();
        model_check_count();
    }
}

static void test_random_operations_agree_with_an_array(void)
{
    static const uint64_t wraps[] = {2 * SMALL_RING, (uint64_t)1 << 48, (uint64_t)1 << (63 - SMALL_RING_LOG2)};
    for (uint64_t seed = 0; seed < 60; seed++) run_model(seed, wraps[seed % 3] - seed * 7 % (3 * SMALL_RING), 8000);
}

int main(void)
{
    UNITY_BEGIN();
    RUN_TEST(test_a_new_ring_is_empty);
    RUN_TEST(test_messages_come_out_in_the_order_they_went_in);
    RUN_TEST(test_taken_messages_may_be_released_in_any_order);
    RUN_TEST(test_a_message_across_the_end_of_the_ring_lies_in_one_piece);
    RUN_TEST(test_sizes_around_the_inline_and_cell_boundaries_use_the_cells_they_need);
    RUN_TEST(test_the_largest_message_fits_wherever_an_empty_ring_stands);
    RUN_TEST(test_a_ring_is_full_exactly_at_its_capacity);
    RUN_TEST(test_a_full_ring_gains_no_room_while_its_oldest_message_is_held);
    RUN_TEST(test_max_items_is_exact_and_the_room_of_a_taken_message_is_free_at_once);
    RUN_TEST(test_max_items_counts_what_is_being_written);
    RUN_TEST(test_max_items_counts_skipped_and_returned_messages);
    RUN_TEST(test_max_items_does_not_count_a_claim_that_was_given_up);
    RUN_TEST(test_a_ring_works_across_the_wrap_of_its_slot_index);
    RUN_TEST(test_a_ring_works_across_the_wrap_of_the_lap_in_its_words);
    RUN_TEST(test_a_ring_works_across_the_wrap_of_its_positions);
    RUN_TEST(test_a_ring_works_across_the_wrap_of_its_item_counts);
    RUN_TEST(test_every_wrap_is_crossed_with_irregular_records_around_it);
    RUN_TEST(test_memory_that_was_never_written_is_no_record_also_where_the_lap_is_zero);
    RUN_TEST(test_irregular_follows_reclaim_so_that_it_never_seems_to_lie_ahead);
    RUN_TEST(test_a_lagging_tail_is_moved_by_the_next_claim);
    RUN_TEST(test_a_message_at_a_lagging_tail_can_be_taken);
    RUN_TEST(test_a_lagging_tail_at_a_full_ring_does_not_let_anybody_claim_too_much);
    RUN_TEST(test_a_lagging_head_is_moved_by_the_next_take);
    RUN_TEST(test_reclaim_takes_a_lagging_head_along_instead_of_passing_it);
    RUN_TEST(test_a_claim_at_head_with_nothing_behind_is_pending_and_stays_a_claim);
    RUN_TEST(test_claims_before_a_message_are_skipped_and_the_message_is_taken);
    RUN_TEST(test_a_message_published_late_is_delivered_before_younger_ones);
    RUN_TEST(test_a_message_published_late_is_delivered_also_if_head_still_stands_at_it);
    RUN_TEST(test_a_skipped_claim_that_is_given_up_is_never_delivered);
    RUN_TEST(test_a_claim_that_is_given_up_is_passed_over_wherever_it_lies);
    RUN_TEST(test_a_patient_consumer_takes_in_order_if_the_claim_is_published_meanwhile);
    RUN_TEST(test_a_claim_whose_word_somebody_overwrote_cannot_be_published);
    RUN_TEST(test_a_message_given_back_is_delivered_before_younger_ones);
    RUN_TEST(test_messages_given_back_in_reverse_are_delivered_in_the_order_of_their_puts);
    RUN_TEST(test_the_hint_is_set_with_a_new_version_and_cleared_by_who_finds_nothing);
    RUN_TEST(test_a_hint_without_a_returned_message_is_harmless);
    RUN_TEST(test_a_message_too_large_for_the_caller_stays_where_it_is);
    RUN_TEST(test_a_taken_record_is_found_by_its_owner_and_position_only);
    RUN_TEST(test_every_take_of_a_message_is_counted_and_the_count_stays_at_its_ceiling);
    RUN_TEST(test_a_reference_takes_one_cell_and_brings_its_run_and_the_size_of_the_message);
    RUN_TEST(test_a_reference_of_several_cells_is_corrupt);
    RUN_TEST(test_references_are_counted_as_long_as_they_are_messages);
    RUN_TEST(test_what_has_become_of_a_record_is_known_until_its_lap_is_over);
    RUN_TEST(test_the_fate_of_a_number_that_no_record_has_is_none);
    RUN_TEST(test_a_ring_that_looks_aside_leaves_clearing_the_hint_to_its_caller);
    RUN_TEST(test_a_ring_that_looks_aside_gives_what_was_returned_to_it_first_and_then_does_not_pass_the_hint_by);
    RUN_TEST(test_the_count_is_exact_in_every_irregular_situation);
    RUN_TEST(test_a_claim_being_written_is_not_skipped_for_nothing_when_it_is_the_only_one);
    RUN_TEST(test_the_census_counts_records_by_kind);
    RUN_TEST(test_recovery_gives_up_the_claims_of_the_dead);
    RUN_TEST(test_recovery_gives_up_skipped_claims_of_the_dead);
    RUN_TEST(test_what_the_dead_had_taken_is_delivered_to_others_in_order);
    RUN_TEST(test_recovery_finds_a_claim_that_tail_has_not_passed);
    RUN_TEST(test_recovery_moves_a_head_that_the_dead_left_lagging);
    RUN_TEST(test_recovering_twice_changes_nothing_more);
    RUN_TEST(test_recovery_leaves_the_records_of_others_alone);
    RUN_TEST(test_recovery_sets_the_hint_for_a_returned_message_that_it_only_meets);
    RUN_TEST(test_recovery_works_in_a_full_ring);
    RUN_TEST(test_a_record_held_in_a_ring_full_of_nothing_else_is_stuck_and_can_be_gone_round);
    RUN_TEST(test_who_looks_for_room_sees_that_of_the_next_lane_where_one_was_closed);
    RUN_TEST(test_a_ring_full_of_messages_is_not_stuck);
    RUN_TEST(test_messages_of_a_closed_lane_come_before_those_of_the_next);
    RUN_TEST(test_what_is_given_back_in_a_closed_lane_is_delivered_before_the_next_lane);
    RUN_TEST(test_as_many_records_as_there_are_spare_lanes_can_be_gone_round_and_no_more);
    RUN_TEST(test_a_lane_is_not_used_again_before_consumers_have_left_it);
    RUN_TEST(test_lanes_can_be_changed_more_often_than_an_end_can_count);
    RUN_TEST(test_max_items_holds_across_lanes);
    RUN_TEST(test_a_claim_beyond_the_reserved_pages_says_how_many_are_needed_and_changes_nothing);
    RUN_TEST(test_a_claim_across_the_end_needs_pages_up_to_the_end_only);
    RUN_TEST(test_the_count_of_reserved_pages_only_grows_and_nonsense_is_corrupt);
    RUN_TEST(test_an_empty_ring_begins_again_where_its_pages_end);
    RUN_TEST(test_in_the_last_quarter_of_its_pages_an_empty_ring_begins_again);
    RUN_TEST(test_two_at_a_time_do_not_miss_the_moment_at_which_the_ring_is_empty);
    RUN_TEST(test_a_ring_that_is_not_empty_goes_on_beyond_its_pages);
    RUN_TEST(test_a_ring_goes_on_beyond_its_pages_until_they_are_worth_a_lap);
    RUN_TEST(test_the_older_a_ring_is_the_longer_are_its_laps);
    RUN_TEST(test_short_laps_use_up_an_eighth_of_all_laps_at_most);
    RUN_TEST(test_a_large_message_begins_again_only_if_it_fits_in_front);
    RUN_TEST(test_messages_of_any_sizes_one_at_a_time_need_pages_for_two_of_the_largest);
    RUN_TEST(test_a_gap_is_no_item_wherever_cursors_lag);
    RUN_TEST(test_a_gap_is_passed_by_whichever_call_meets_it);
    RUN_TEST(test_a_claim_that_stands_where_pages_end_is_no_reason_to_ask_for_more);
    RUN_TEST(test_what_was_claimed_and_voided_is_not_in_the_way_of_beginning_again);
    RUN_TEST(test_what_was_given_back_is_found_and_the_ring_does_not_begin_again_before);
    RUN_TEST(test_laps_are_cut_short_around_the_end_of_every_field);
    RUN_TEST(test_the_items_of_cursors_wrap_while_laps_are_short);
    RUN_TEST(test_a_lane_is_closed_where_pages_end_and_the_next_has_room);
    RUN_TEST(test_a_lane_without_pages_is_not_gone_to_before_it_has_some);
    RUN_TEST(test_without_more_pages_a_ring_makes_do_with_those_it_has);
    RUN_TEST(test_without_more_pages_an_empty_ring_takes_a_message_for_ever);
    RUN_TEST(test_without_more_pages_here_puts_go_on_in_a_lane_that_has_them);
    RUN_TEST(test_a_batch_begins_again_as_a_whole);
    RUN_TEST(test_gaps_that_another_program_wrote_end_every_call);
    RUN_TEST(test_a_record_of_no_cells_is_corrupt_to_everybody);
    RUN_TEST(test_an_end_that_leads_round_all_lanes_is_corrupt_and_not_followed_for_ever);
    RUN_TEST(test_a_word_of_an_unknown_kind_is_corrupt_to_a_taker);
    RUN_TEST(test_a_size_beyond_the_cells_of_its_record_is_corrupt_and_not_read);
    RUN_TEST(test_a_reclaim_beyond_tail_is_corrupt_to_a_claim);
    RUN_TEST(test_a_head_beyond_tail_counts_as_empty);
    RUN_TEST(test_a_reclaim_more_than_a_ring_behind_is_corrupt_to_a_walk);
    RUN_TEST(test_a_ring_of_garbage_ends_every_call_and_leads_nobody_out_of_bounds);
    RUN_TEST(test_random_operations_agree_with_an_array);
    return UNITY_END();
}
