/* main.c — the explorer's command line. */
#include "world.h"

#include <ringbuf/ringbuf.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int usage(void)
{
    fputs("model                         explore every scenario within its quick bounds\n"
          "model --full                  within its full bounds\n"
          "model --list\n"
          "  --only NAME                 one scenario\n"
          "  --bounds P,C,S,T            other bounds: preemptions, crashes, stale values, timeouts; -1: no bound\n"
          "  --seconds N                 for each scenario at most\n"
          "  --walk N [--seed S]         N random walks instead\n"
          "  --replay SCHEDULE           repeat an execution, and print every step (with the same --only and --bounds)\n"
          "  --trace                     print the steps of an execution that fails\n",
          stderr);
    return 2;
}

struct wish {
    const char *only, *replay;
    bool full, trace, list, bounded;
    struct model_bounds bounds;
    double seconds;
    uint64_t walks, seed;
};

static bool read_wish(struct wish *wish, int count, char **arguments)
{
    for (int i = 1; i < count; i++) {
        const char *option = arguments[i], *value = i + 1 < count ? arguments[i + 1] : NULL;
        if (!strcmp(option, "--full")) wish->full = true;
        else if (!strcmp(option, "--trace")) wish->trace = true;
        else if (!strcmp(option, "--list")) wish->list = true;
        else if (!value) return false;
        else if (!strcmp(option, "--only")) wish->only = value, i++;
        else if (!strcmp(option, "--replay")) wish->replay = value, i++;
        else if (!strcmp(option, "--seconds")) wish->seconds = atof(value), i++;
        else if (!strcmp(option, "--walk")) wish->walks = strtoull(value, NULL, 0), i++;
        else if (!strcmp(option, "--seed")) wish->seed = strtoull(value, NULL, 0), i++;
        else if (!strcmp(option, "--bounds")) {
            struct model_bounds *b = &wish->bounds;
            wish->bounded = sscanf(value, "%d,%d,%d,%d", &b->preemptions, &b->crashes, &b->stale, &b->jumps) == 4;
            if (!wish->bounded) return false;
            i++;
        } else {
            return false;
        }
    }
    return true;
}

static void describe_bounds(char *text, size_t bytes, struct model_bounds b)
{
    size_t used = 0;
    const int all[] = {b.preemptions, b.crashes, b.stale, b.jumps};
    for (int i = 0; i < 4; i++) {
        if (all[i] < 0) used += (size_t)snprintf(text + used, bytes - used, "%sall", i ? "," : "");
        else used += (size_t)snprintf(text + used, bytes - used, "%s%d", i ? "," : "", all[i]);
    }
}

/** Returns whether all is well. */
static bool run(const struct scenario *scenario, const struct wish *wish)
{
    struct model_bounds bounds = wish->bounded ? wish->bounds : wish->full ? scenario->full : scenario->quick;
    struct model_result result;
    const struct model_program *program = world_arrange(scenario);
    if (wish->replay) model_replay(program, bounds, wish->replay, &result);
    else if (wish->walks) model_walk(program, bounds, wish->seed, wish->walks, wish->seconds, &result);
    else model_explore(program, bounds, wish->seconds, &result);
    char text[64];
    describe_bounds(text, sizeof text, bounds);
    printf("%-34s %-12s %9lu executions %9lu states %8lu deaths %5lu steps %7.1f s  %s\n", scenario->name, text, result.executions, result.states,
           result.crashes, result.longest, result.seconds, result.failed ? "FAILED" : wish->walks || wish->replay ? "" : result.complete ? "complete" : "cut off");
    if (!result.failed) {
        fflush(stdout);
        return true;
    }
    if (wish->trace) model_retrace(&result);
    printf("  %s\n  --only '%s' --bounds %d,%d,%d,%d --replay %s\n", result.failure, scenario->name, bounds.preemptions, bounds.crashes,
           bounds.stale, bounds.jumps, result.schedule[0] ? result.schedule : "-");
    fflush(stdout);
    return false;
}

int main(int count, char **arguments)
{
    struct wish wish = {.seconds = 1e9, .seed = 1};
    if (!read_wish(&wish, count, arguments)) return usage();
    bool well = true, found = false;
    int crash_points = 0, points = 0;
    for (const struct scenario *scenario = scenarios; scenario->name; scenario++) {
        if (wish.only && strcmp(wish.only, scenario->name) != 0) continue;
        found = true;
        if (wish.list) puts(scenario->name);
        else well = run(scenario, &wish) && well;
    }
    if (!found) return usage();
    if (wish.list) return 0;
    for (int point = 0; point < RBI_POINT_COUNT; point++) points += model_point_passed[point], crash_points += model_point_deaths[point] > 0;
    printf("%d of %d test points passed, deaths at %d\n", points, RBI_POINT_COUNT, crash_points);
    if (!wish.only) {
        printf("not passed:");
        for (int point = 0; point < RBI_POINT_COUNT; point++)
            if (!model_point_passed[point]) printf(" %s", rbi_point_name((enum rbi_point)point));
        printf("\n");
    }
    return well ? 0 : 1;
}
