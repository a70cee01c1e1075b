/* A stranger's program: makes a queue, puts a message, gets it back. */
#include <stdio.h>
#include <string.h>

#include <ringbuf/ringbuf.h>

int main(void)
{
    static const char sent[] = "hello";
    char received[sizeof sent] = "";
    size_t size = 0;

    ringbuf *rb = NULL;
    ringbuf_status s = ringbuf_create(&rb, NULL, NULL);
    if (s == RINGBUF_OK)
        s = ringbuf_put(rb, sent, sizeof sent, 0);
    if (s == RINGBUF_OK)
        s = ringbuf_get(rb, &size, received, sizeof received, 0);
    ringbuf_free(rb);

    if (s != RINGBUF_OK || size != sizeof sent || memcmp(sent, received, size) != 0) {
        fprintf(stderr, "consumer: %s\n", ringbuf_status_text(s));
        return 1;
    }
    printf("%s from ringbuf %s\n", received, ringbuf_version());
    return 0;
}
