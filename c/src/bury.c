/* bury.c — floor 4: moving a message that has had its attempts to the dead-letter queue.
 *
 * How often a message is handed out, and where it goes after that, is fixed with the queue (rbi_stamp), so it holds for every
 * consumer.  A consumer that takes a message beyond that (take.c) moves it: it puts the bytes into the queue of that name, in the
 * same directory, without waiting for room there; then it ends the message here, as got and done.  A death in between leaves the
 * message in both.
 *
 * The dead-letter queue is made when it is first needed, as this one was: same tag, permissions and sizes; if it is there, its
 * own hold. It is opened for each message and left again.  A handle that stayed open would keep an empty queue from being removed
 * by its last user, would hold a participant's place in it for each consumer here, and would go on putting into a queue whose
 * name belongs to another one by now.  Messages are seldom buried, and then the open costs less than the attempts did.
 *
 * The put there takes nothing, so queues that are each other's dead-letter queues do not chase a message in circles; a queue that
 * is its own is refused when it is created. */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

/** The directory that the queue's file is in.  NULL: no memory. */
static char *directory_of(const ringbuf *rb)
{
    const char *slash = strrchr(rb->path, '/');
    return slash == rb->path ? strdup("/") : strndup(rb->path, (size_t)(slash - rb->path));
}

static bool may_hold_what_is_in(const ringbuf *dead, const ringbuf *rb)
{
    const char *tag = (const char *)rb->stamp.tag, *other = (const char *)dead->stamp.tag;
    return memcmp(dead->stamp.id, rb->stamp.id, RBI_ID_BYTES) != 0 && (!*tag || !*other || strcmp(tag, other) == 0);
}

ringbuf_status rbi_bury(ringbuf *rb, const void *bytes, size_t size)
{
    char *directory = directory_of(rb);
    if (!directory) return RINGBUF_E_NO_MEMORY;
    ringbuf_options options;
    ringbuf_options_init(&options);
    options.directory = directory;
    options.capacity_bytes = UINT64_C(1) << (rb->stamp.cells_log2 + rb->stamp.cell_log2);
    options.arena_bytes = rbi_arena_bytes(&rb->arena);
    options.max_participants = rb->stamp.max_participants;
    options.permissions = rb->stamp.permissions == 0600 ? 0 : rb->stamp.permissions; /* 0: 0600, and only a file of this user */
    options.label = rb->label;
    options.tag = (const char *)rb->stamp.tag;
    ringbuf *dead = NULL;
    ringbuf_status status = rbi_segment_create(&dead, (const char *)rb->stamp.dead_letter, &options);
    free(directory);
    if (status != RINGBUF_OK) return status;
    status = may_hold_what_is_in(dead, rb) ? ringbuf_put(dead, bytes, size, 0) : RINGBUF_E_INVALID;
    rbi_segment_free(dead);
    RBI_POINT(letter_put);
    return status;
}

ringbuf_status ringbuf_dead_letter_status(ringbuf *rb)
{
    /* relaxed: it is asked after the call that has written it */
    return rb ? (ringbuf_status)rbi_load_relaxed32(&rb->letter_trouble) : RINGBUF_E_INVALID;
}
