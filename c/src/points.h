/* points.h — floor 0, test build only: a test point's name. */
#ifndef RBI_POINTS_H
#define RBI_POINTS_H

#include "atomics.h"

const char *rbi_point_name(enum rbi_point point);

#endif
