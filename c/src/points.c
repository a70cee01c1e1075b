/* points.c — floor 0, test build only: the hook behind RBI_POINT and the points' names. */
#include "points.h"

void (*rbi_point_hook)(enum rbi_point point);

const char *rbi_point_name(enum rbi_point point)
{
    static const char *const names[] = {
#define RBI_POINT_NAME(name) #name,
        RBI_POINTS(RBI_POINT_NAME)
#undef RBI_POINT_NAME
    };
    return names[point];
}
