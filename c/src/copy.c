/* copy.c — floor 0: copy.h for x86-64, and memcpy elsewhere.  Under the sanitizers, too, memcpy: they do not know the intrinsics. */
#include "copy.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#include <emmintrin.h>

enum { LINE = 64, AHEAD = 512 /* bytes to ask for in advance */ };

static void stream(uint8_t *to, const uint8_t *from, size_t bytes)
{
    size_t head = (LINE - ((uintptr_t)to & (LINE - 1))) & (LINE - 1);
    memcpy(to, from, head);
    to += head, from += head, bytes -= head;
    for (; bytes >= LINE; to += LINE, from += LINE, bytes -= LINE) {
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_NTA); /* beyond the end it does nothing */
        __m128i parts[4];
        for (int i = 0; i < 4; i++) parts[i] = _mm_loadu_si128((const __m128i *)(const void *)from + i);
        for (int i = 0; i < 4; i++) _mm_stream_si128((__m128i *)(void *)to + i, parts[i]);
    }
    memcpy(to, from, bytes);
    _mm_sfence(); /* such stores are not ordered by a later release */
}

void rbi_copy(void *to, const void *from, size_t bytes)
{
    if (bytes < RBI_STREAM_BYTES) memcpy(to, from, bytes);
    else stream(to, from, bytes);
}

#else

void rbi_copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

#endif
