/* shout.c — a C program that works together with Python processes: takes messages from one queue, puts them into another in capitals.
 *
 *   shout FROM TO
 *
 * Ends when FROM is shut down and empty, and then shuts TO down.  The Python side opens both with serializer="raw". */
#include <ctype.h>
#include <ringbuf/ringbuf.h>
#include <stdio.h>

static int fail(const char *what, ringbuf_status status)
{
    fprintf(stderr, "%s: %s\n", what, ringbuf_status_text(status));
    return 1;
}

int main(int count, char **words)
{
    if (count != 3) {
        fprintf(stderr, "shout FROM TO\n");
        return 2;
    }
    ringbuf *from, *to;
    ringbuf_status status = ringbuf_open(&from, words[1], NULL);
    if (status != RINGBUF_OK) return fail(words[1], status);
    status = ringbuf_open(&to, words[2], NULL);
    if (status != RINGBUF_OK) return fail(words[2], status);

    unsigned char text[4096];
    size_t size;
    while ((status = ringbuf_get(from, &size, text, sizeof text, RINGBUF_FOREVER)) == RINGBUF_OK) {
        for (size_t i = 0; i < size; i++) text[i] = (unsigned char)toupper(text[i]);
        status = ringbuf_put(to, text, size, RINGBUF_FOREVER);
        if (status != RINGBUF_OK) return fail("put", status);
    }
    if (status != RINGBUF_E_SHUTDOWN) return fail("get", status);
    ringbuf_shutdown(to, 0);
    ringbuf_free(from);
    ringbuf_free(to);
    return 0;
}
