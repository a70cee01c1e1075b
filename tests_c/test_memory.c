/* test_memory.c — floor 4: what the small messages of a queue cost in memory, and what becomes of a queue whose file system is full.
 * That capacity is a bound and not a cost is measured as blocks of the file. */
#include "small_fs.h"

#include "segment.h"

enum {
    KIB = 1024,
    MIB = 1024 * KIB,
    CELL = 128,
    IDLE_KIB = 12,   /* two header pages, and one of participants */
    LIGHT_KIB = 64,  /* and 256 cells with their slots */
};

static ringbuf *queue;
static uint8_t sent[64 * KIB], got[64 * KIB];

void setUp(void)
{
    queue = NULL;
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (uint8_t)(i * 7);
}

void tearDown(void)
{
    ringbuf_free(queue);
    queue = NULL;
    unmount_small_file_system();
}

static void create(const char *directory, uint64_t capacity, uint64_t max_items)
{
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.directory = directory;
    options.capacity_bytes = capacity;
    options.max_items = max_items;
    options.arena_bytes = 0;
    options.max_participants = 16;
    options.flags = RINGBUF_AUTO_CLEANUP;
    ringbuf_free(queue);
    queue = NULL;
    ASSERT_OK(ringbuf_create(&queue, "queue", &options));
}

static uint64_t file_kib(void)
{
    struct stat file;
    TEST_ASSERT_EQUAL_INT(0, fstat(queue->file.fd, &file));
    return (uint64_t)file.st_blocks / 2;
}

static void put(size_t size) { ASSERT_OK(ringbuf_put(queue, sent, size, 0)); }

static void get(size_t size)
{
    size_t came = 0;
    ASSERT_OK(ringbuf_get(queue, &came, got, sizeof got, 0));
    TEST_ASSERT_EQUAL_UINT64(size, came);
    TEST_ASSERT_EQUAL_INT(0, memcmp(sent, got, size));
}

/** Put `flight` messages and get them, until several times the capacity has gone through. */
static void pass_laps(uint64_t capacity, size_t size, int flight)
{
    const uint64_t cells = size <= 48 ? 1 : (size + CELL - 1) / CELL, laps = SANITIZED || emulated() ? 2 : 10;
    for (uint64_t passed = 0; passed < laps * capacity / CELL; passed += cells * (uint64_t)flight) {
        for (int i = 0; i < flight; i++) put(size);
        for (int i = 0; i < flight; i++) get(size);
    }
}

/* ---- what it costs ---- */

static void test_a_queue_that_nobody_has_used_costs_its_header_and_a_page_of_participants(void)
{
    create(NULL, 64 * MIB, 0);
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(IDLE_KIB, file_kib());
}

static void test_one_message_at_a_time_costs_little_however_many_go_through(void)
{
    /* A larger ring lets its laps grow longer with age. */
    static const struct {
        uint64_t capacity;
        size_t size;
        uint64_t kib;
    } cases[] = {
        {4 * MIB, 1000, LIGHT_KIB}, {4 * MIB, 48, LIGHT_KIB}, {4 * MIB, 1, LIGHT_KIB}, {64 * KIB, 1000, LIGHT_KIB},
        {4 * MIB, 64 * KIB, 4 * 64}, {64 * MIB, 64 * KIB, 1 * MIB / KIB}, {64 * MIB, 1000, 1 * MIB / KIB},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (uint64_t max_items = 0; max_items < 2; max_items++) {
            create(NULL, cases[i].capacity, max_items);
            pass_laps(cases[i].capacity, cases[i].size, 1);
            TEST_ASSERT_LESS_OR_EQUAL_UINT64(cases[i].kib, file_kib());
        }
    }
}

static void test_a_few_at_a_time_cost_a_few_times_their_size(void)
{
    for (int flight = 2; flight <= 10; flight++) {
        create(NULL, 4 * MIB, 0);
        pass_laps(4 * MIB, 1000, flight);
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(4 * LIGHT_KIB, file_kib());
        create(NULL, 4 * MIB, 0);
        pass_laps(4 * MIB, 48, flight);
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(LIGHT_KIB, file_kib());
    }
}

static void test_batches_cost_a_few_times_their_size(void)
{
    enum { BATCH = 10 };
    ringbuf_part parts[BATCH];
    for (int i = 0; i < BATCH; i++) parts[i] = (ringbuf_part){.data = sent, .size = 1000};
    create(NULL, 4 * MIB, 0);
    for (int batch = 0; batch < 5000; batch++) {
        ASSERT_OK(ringbuf_put_all(queue, parts, BATCH, 0));
        for (int i = 0; i < BATCH; i++) get(1000);
    }
    TEST_ASSERT_LESS_OR_EQUAL_UINT64(2 * LIGHT_KIB, file_kib());
}

static void test_a_burst_has_all_of_the_capacity_also_after_laps_that_were_cut_short(void)
{
    enum { CAPACITY = 256 * KIB, MESSAGES = CAPACITY / CELL - 1 };
    for (int before = 0; before < 600; before += SANITIZED ? 61 : 7) {
        create(NULL, CAPACITY, 0);
        for (int i = 0; i < before; i++) {
            put(1);
            get(1);
        }
        uint64_t light = file_kib();
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(LIGHT_KIB, light);
        for (int i = 0; i < MESSAGES; i++) put(40);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(queue, sent, 1, 0));
        for (int i = 0; i < MESSAGES; i++) get(40);
        ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(queue, &(size_t){0}, got, sizeof got, 0));
        TEST_ASSERT_GREATER_THAN_UINT64(light, file_kib()); /* the pages of a burst stay */
    }
}

static void test_the_bound_on_items_is_exact_where_laps_are_cut_short(void)
{
    for (uint64_t max_items = 1; max_items <= 5; max_items++) {
        create(NULL, 4 * MIB, max_items);
        for (int round = 0; round < 2000; round++) {
            uint64_t items = UINT64_MAX;
            for (uint64_t i = 0; i < max_items; i++) put(100);
            ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_put(queue, sent, 100, 0));
            ASSERT_OK(ringbuf_size(queue, &items));
            TEST_ASSERT_EQUAL_UINT64(max_items, items);
            for (uint64_t i = 0; i < max_items; i++) get(100);
            ASSERT_OK(ringbuf_size(queue, &items));
            TEST_ASSERT_EQUAL_UINT64(0, items);
        }
        TEST_ASSERT_LESS_OR_EQUAL_UINT64(LIGHT_KIB, file_kib());
    }
}

struct pair {
    uint64_t messages;
};

static int put_in_step(void *context)
{
    const struct pair *pair = context;
    ringbuf *rb = NULL;
    if (ringbuf_open(&rb, "queue", NULL) != RINGBUF_OK) return 1;
    for (uint64_t i = 0; i < pair->messages; i++)
        if (ringbuf_put(rb, sent, 1000, RINGBUF_FOREVER) != RINGBUF_OK) return 2;
    ringbuf_free(rb);
    return 0;
}

static void test_processes_that_put_at_once_where_laps_are_cut_short_lose_nothing(void)
{
    enum { PRODUCERS = 4 };
    struct pair pair = {.messages = SANITIZED ? 2000 : 20000};
    create(NULL, 4 * MIB, 1);
    pid_t children[PRODUCERS];
    for (int i = 0; i < PRODUCERS; i++) children[i] = start_child(put_in_step, &pair);
    size_t size = 0;
    for (uint64_t i = 0; i < PRODUCERS * pair.messages; i++) ASSERT_OK(ringbuf_get(queue, &size, got, sizeof got, RINGBUF_FOREVER));
    for (int i = 0; i < PRODUCERS; i++) TEST_ASSERT_EQUAL_INT(0, end_of(children[i]));
    ASSERT_STATUS(RINGBUF_E_TIMEOUT, ringbuf_get(queue, &size, got, sizeof got, 0));
}

/* ---- where there is no more ---- */

/** A queue that has pages for so many messages, and a file system that has no more: a file has the rest. */
static void fill_the_file_system(int messages, size_t size)
{
    mount_small_file_system("size=1m");
    create(small_file_system, 4 * MIB, 0);
    for (int i = 0; i < messages; i++) put(size);
    for (int i = 0; i < messages; i++) get(size);
    char path[160];
    snprintf(path, sizeof path, "%s/hog", small_file_system);
    int hog = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    TEST_ASSERT_GREATER_OR_EQUAL_INT(0, hog);
    for (off_t at = 0; posix_fallocate(hog, at, 4 * KIB) == 0;) at += 4 * KIB;
    close(hog);
}

static void test_a_queue_on_a_full_file_system_takes_messages_for_ever_in_the_pages_it_has(void)
{
    static const size_t sizes[] = {1, 1000, 3000, 7000};
    fill_the_file_system(8, 1000); /* 64 cells and a slot more: 128 cells have pages */
    uint64_t before = file_kib();
    for (int i = 0; i < 5000; i++) {
        put(sizes[i % 4]);
        get(sizes[i % 4]);
    }
    TEST_ASSERT_EQUAL_UINT64(before, file_kib());
}

static void test_on_a_full_file_system_what_is_got_makes_room_for_what_is_put(void)
{
    fill_the_file_system(8, 1000);
    for (int round = 0; round < 300; round++) {
        int fits = 0;
        ringbuf_status status;
        while ((status = ringbuf_put(queue, sent, 1000, 0)) == RINGBUF_OK) fits++;
        TEST_ASSERT_TRUE(status == RINGBUF_E_NO_SPACE || status == RINGBUF_E_TIMEOUT);
        TEST_ASSERT_GREATER_OR_EQUAL_INT(round ? 1 : 7, fits);
        int leave = round % 3;
        for (int i = leave; i < fits; i++) get(1000);
        if (round % 10 == 9)
            while (ringbuf_get(queue, &(size_t){0}, got, sizeof got, 0) == RINGBUF_OK) continue;
    }
}

static void test_on_a_full_file_system_puts_do_not_go_on_in_a_lane_without_pages(void)
{
    fill_the_file_system(8, 1000);
    ringbuf_message held = {0};
    put(1000);
    ASSERT_OK(ringbuf_take(queue, &held, NULL, 0, 0));
    /* For longer than it takes until a record is gone round. */
    for (int i = 0; i < 8; i++) {
        while (ringbuf_put(queue, sent, 1000, 0) == RINGBUF_OK) continue;
        while (ringbuf_get(queue, &(size_t){0}, got, sizeof got, 0) == RINGBUF_OK) continue;
        nap_ms(20);
    }
    TEST_ASSERT_EQUAL_UINT64(0, rbi_load_total64(&queue->header->order.put_epoch));
    ASSERT_OK(ringbuf_ack(queue, &held));
    for (int i = 0; i < 200; i++) {
        put(7000);
        get(7000);
    }
}

static void test_on_a_full_file_system_a_batch_is_put_whole_once_the_queue_is_empty(void)
{
    enum { BATCH = 10 };
    ringbuf_part parts[BATCH];
    for (int i = 0; i < BATCH; i++) parts[i] = (ringbuf_part){.data = sent, .size = 1000};
    fill_the_file_system(8, 1000);
    for (int round = 0; round < 500; round++) {
        put(1000 - (size_t)round);
        if (round % 2) ringbuf_put_all(queue, parts, BATCH, 0); /* or not: it depends on where the one lies */
        while (ringbuf_get(queue, &(size_t){0}, got, sizeof got, 0) == RINGBUF_OK) continue;
        ASSERT_OK(ringbuf_put_all(queue, parts, BATCH, 0));
        for (int i = 0; i < BATCH; i++) get(1000);
    }
}

int main(void)
{
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_queue_that_nobody_has_used_costs_its_header_and_a_page_of_participants);
    RUN_TEST(test_one_message_at_a_time_costs_little_however_many_go_through);
    RUN_TEST(test_a_few_at_a_time_cost_a_few_times_their_size);
    RUN_TEST(test_batches_cost_a_few_times_their_size);
    RUN_TEST(test_a_burst_has_all_of_the_capacity_also_after_laps_that_were_cut_short);
    RUN_TEST(test_the_bound_on_items_is_exact_where_laps_are_cut_short);
    RUN_TEST(test_processes_that_put_at_once_where_laps_are_cut_short_lose_nothing);
    RUN_TEST(test_a_queue_on_a_full_file_system_takes_messages_for_ever_in_the_pages_it_has);
    RUN_TEST(test_on_a_full_file_system_what_is_got_makes_room_for_what_is_put);
    RUN_TEST(test_on_a_full_file_system_puts_do_not_go_on_in_a_lane_without_pages);
    RUN_TEST(test_on_a_full_file_system_a_batch_is_put_whole_once_the_queue_is_empty);
    return leave_suite_directory(UNITY_END());
}
