/* copy.h — floor 0: copying messages.
 *
 * A message of several MiB does not stay in a cache near a processor until somebody reads it.  Stores that go past the caches do not
 * fetch the lines that they overwrite and do not push out what others work on: 16 MiB take 0.65 of the time of memcpy, which here
 * would not do so below hundreds of MiB (docs/decisions/0012-streaming-copies.md).  Below RBI_STREAM_BYTES memcpy is as fast or faster. */
#ifndef RBI_COPY_H
#define RBI_COPY_H

#include <stddef.h>

enum { RBI_STREAM_BYTES = 4 << 20 };

/** As memcpy.  What is written is visible to whoever sees what the caller stores next, with release. */
void rbi_copy(void *to, const void *from, size_t bytes);

#endif
