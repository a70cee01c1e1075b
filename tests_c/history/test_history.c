/* test_history.c — histories of real storms are those of a FIFO queue, and falsified ones are not.
 *
 *   test_history [OPERATIONS [SEED]]      default: a short one for a test run; .ci/torture gives it 10 million
 *   test_history --check FILE             a history that was kept
 *   test_history_at_points ...            the same; workers also pause and die at test points
 *
 * Each plan is a queue of another shape and other habits of its workers; storm.c says how they are recorded, check.c what is
 * asked. A history that is refused is kept in $HISTORY_KEEP, if that names a file. */
#include "storm.h"
#include "support.h"

enum { ROUND = 250000 };

static const struct storm_plan plans[] = {
    {.name = "calm, 32 cells", .capacity_bytes = 4096, .workers = 4, .always_fits = 7},
    {.name = "calm, leases",
     .capacity_bytes = 4096,
     .arena_bytes = 1 << 20,
     .workers = 4,
     .large = true,
     .leases = true,
     .holds = true},
    {.name = "32 cells", .capacity_bytes = 4096, .workers = 6, .kills_per_s = 300, .always_fits = 7},
    {.name = "3 items", .capacity_bytes = 4096, .max_items = 3, .workers = 5, .leases = true, .kills_per_s = 300},
    {.name = "32 cells, leases", .capacity_bytes = 4096, .workers = 6, .leases = true, .holds = true, .kills_per_s = 300},
    {.name = "32 cells, arena 256 KiB",
     .capacity_bytes = 4096,
     .arena_bytes = 256 << 10,
     .workers = 8,
     .large = true,
     .leases = true,
     .holds = true,
     .kills_per_s = 300},
    {.name = "64 KiB, arena 4 MiB",
     .capacity_bytes = 64 << 10,
     .arena_bytes = 4 << 20,
     .workers = 8,
     .large = true,
     .leases = true,
     .holds = true,
     .kills_per_s = 200},
    {.name = "1 MiB, no arena", .capacity_bytes = 1 << 20, .workers = 8, .leases = true, .kills_per_s = 200},
    {.name = "2 items, short laps",
     .capacity_bytes = 16 << 20,
     .max_items = 2,
     .workers = 5,
     .leases = true,
     .short_laps = true,
     .kills_per_s = 300},
};
enum { PLANS = sizeof plans / sizeof *plans };

static uint64_t operations = SANITIZED ? 40000 : 200000, seed;

static void keep(const struct history *history)
{
    const char *path = getenv("HISTORY_KEEP");
    FILE *file = path ? fopen(path, "wb") : NULL;
    if (!file) return;
    fwrite(history, sizeof *history, 1, file);
    fwrite(history->ops, sizeof *history->ops, history->count, file);
    fclose(file);
}

static int check_file(const char *path)
{
    struct history history;
    struct history_verdict verdict;
    FILE *file = fopen(path, "rb");
    if (!file || fread(&history, sizeof history, 1, file) != 1) return 2;
    history.ops = malloc(history.count * sizeof *history.ops);
    if (!history.ops || fread(history.ops, sizeof *history.ops, history.count, file) != history.count) return 2;
    fclose(file);
    history_check(&history, &verdict);
    printf("%s %s\n", history_fault_name(verdict.fault), verdict.text);
    free(history.ops);
    return verdict.fault != HISTORY_LINEARIZABLE;
}

static void test_storms_of_all_shapes_leave_histories_of_a_fifo_queue(void)
{
    printf("%-24s %7s %10s %6s %6s %6s %8s %8s %9s %8s %5s %6s %-12s %6s %6s\n", "queue", "workers", "operations", "kills",
           "stops", "deaths", "pending", "redeliv.", "empty", "full", "late", "lanes", "verdict", "storm", "check");
    uint64_t all = 0, deaths = 0, pending = 0, redelivered = 0, orders = 0, fulls = 0;
    for (int i = 0; i < PLANS; i++) {
        uint64_t wanted = operations / PLANS;
        struct history_verdict sum = {.fault = HISTORY_LINEARIZABLE};
        uint64_t kills = 0, stops = 0, lane_changes = 0;
        double stormed = 0, checked = 0;
        for (uint64_t round = 0; sum.operations < wanted && sum.fault == HISTORY_LINEARIZABLE; round++) {
            struct storm_record record;
            struct history_verdict verdict;
            uint64_t left = wanted - sum.operations;
            storm(&plans[i], left < ROUND ? left : ROUND, seed + round * 1000003 + (uint64_t)i, &record);
            TEST_ASSERT_EQUAL_STRING_MESSAGE("", record.complaint, plans[i].name);
            if (plans[i].short_laps) TEST_ASSERT_GREATER_THAN_UINT64(1, record.laps); /* there is only one without */
            int64_t start_ns = ringbuf_now_ns();
            history_check(&record.history, &verdict);
            checked += (double)(ringbuf_now_ns() - start_ns) / 1e9;
            stormed += record.seconds;
            kills += record.kills;
            stops += record.stops;
            lane_changes += record.lane_changes;
            orders += verdict.orders_judged;
            fulls += verdict.fulls_judged;
            sum.operations += verdict.operations;
            sum.deaths += verdict.deaths;
            sum.pending += verdict.pending;
            sum.redeliveries += verdict.redeliveries;
            sum.empties += verdict.empties;
            sum.fulls += verdict.fulls;
            sum.explained += verdict.explained;
            sum.fault = verdict.fault;
            if (verdict.fault != HISTORY_LINEARIZABLE) {
                keep(&record.history);
                printf("%s, seed %llu: %s\n", plans[i].name, (unsigned long long)(seed + round * 1000003 + (uint64_t)i),
                       verdict.text);
            }
            free(record.history.ops);
        }
        printf("%-24s %7d %10llu %6llu %6llu %6llu %8llu %8llu %9llu %8llu %5llu %6llu %-12s %5.1fs %5.1fs\n", plans[i].name,
               plans[i].workers, (unsigned long long)sum.operations, (unsigned long long)kills, (unsigned long long)stops,
               (unsigned long long)sum.deaths, (unsigned long long)sum.pending, (unsigned long long)sum.redeliveries,
               (unsigned long long)sum.empties, (unsigned long long)sum.fulls, (unsigned long long)sum.explained,
               (unsigned long long)lane_changes, history_fault_name(sum.fault), stormed, checked);
        fflush(stdout);
        TEST_ASSERT_EQUAL_STRING_MESSAGE("linearizable", history_fault_name(sum.fault), plans[i].name);
        all += sum.operations;
        deaths += sum.deaths;
        pending += sum.pending;
        redelivered += sum.redeliveries;
    }
    printf("%llu operations, %llu deaths, %llu pending, %llu redelivered (the order of %llu judged), %llu times full judged: "
           "linearizable\n",
           (unsigned long long)all, (unsigned long long)deaths, (unsigned long long)pending, (unsigned long long)redelivered,
           (unsigned long long)orders, (unsigned long long)fulls);
    TEST_ASSERT_GREATER_THAN_UINT64(0, deaths);
    TEST_ASSERT_GREATER_THAN_UINT64(0, redelivered);
}

static void test_a_history_falsified_in_one_place_is_refused(void)
{
    uint64_t random = seed;
    static const int recorded[] = {0, 2, 5};
    for (size_t i = 0; i < sizeof recorded / sizeof *recorded; i++) {
        struct storm_record record;
        struct history_verdict verdict;
        unsigned refused = 0;
        storm(&plans[recorded[i]], 5000, seed + i, &record);
        TEST_ASSERT_EQUAL_STRING("", record.complaint);
        TEST_ASSERT_EQUAL_STRING_MESSAGE("linearizable", history_fault_name(history_check(&record.history, &verdict)),
                                         verdict.text);
        for (int how = 0; how < FALSIFICATIONS; how++)
            for (int times = 0; times < 5; times++) {
                struct history falsified;
                if (!falsify(&record.history, (enum falsification)how, &random, &falsified)) continue;
                history_check(&falsified, &verdict);
                free(falsified.ops);
                if (verdict.fault == HISTORY_LINEARIZABLE) TEST_FAIL_MESSAGE(falsification_name((enum falsification)how));
                refused++;
            }
        printf("%s: %u falsified histories were refused\n", plans[recorded[i]].name, refused);
        TEST_ASSERT_GREATER_THAN_UINT(FALSIFICATIONS, refused);
        free(record.history.ops);
    }
}

void setUp(void) {}
void tearDown(void) { assert_nothing_is_left(); }

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "--check") == 0) return check_file(words[2]);
    seed = (uint64_t)time(NULL);
    if (count > 1) operations = strtoull(words[1], NULL, 10);
    if (count > 2) seed = strtoull(words[2], NULL, 10);
    printf("seed %llu\n", (unsigned long long)seed);
    enter_suite_directory();
    UNITY_BEGIN();
    RUN_TEST(test_a_history_falsified_in_one_place_is_refused);
    RUN_TEST(test_storms_of_all_shapes_leave_histories_of_a_fifo_queue);
    return leave_suite_directory(UNITY_END());
}
