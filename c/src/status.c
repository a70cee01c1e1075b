/* status.c — floor 0: a status as a sentence, and the library's versions. */
#include "layout.h"
#include "platform.h"

#include <ringbuf/ringbuf.h>

#ifndef RINGBUF_VERSION_STRING
#error "the build defines RINGBUF_VERSION_STRING"
#endif

/* A switch without default: a new code is a compiler warning here. */
static const char *text_of(enum ringbuf_code code)
{
    switch (code) {
    case RINGBUF_OK: return "done";
    case RINGBUF_E_TIMEOUT: return "nothing happened until the deadline";
    case RINGBUF_E_SMALL: return "the buffer is smaller than the message, which stays queued";
    case RINGBUF_E_INTR: return "interrupted by a signal; call again";
    case RINGBUF_E_SHUTDOWN: return "the queue was shut down";
    case RINGBUF_E_CLOSED: return "this handle was closed";
    case RINGBUF_E_TOO_LARGE: return "the message is larger than the queue can ever hold";
    case RINGBUF_E_INVALID: return "an argument makes no sense";
    case RINGBUF_E_NOT_FOUND: return "no queue of that name";
    case RINGBUF_E_EXISTS: return "a queue of that name exists";
    case RINGBUF_E_GONE: return "the queue is gone; another one has its name";
    case RINGBUF_E_ACCESS: return "permission denied, or the file belongs to another user";
    case RINGBUF_E_CORRUPT: return "the file is not a queue, or its contents were damaged, or it was truncated";
    case RINGBUF_E_VERSION: return "the queue has another layout version or byte order";
    case RINGBUF_E_NO_SPACE: return "the shared-memory file system is full";
    case RINGBUF_E_NO_MEMORY: return "out of memory or address space";
    case RINGBUF_E_ARENA_FULL: return "the arena had no room for the message until the deadline";
    case RINGBUF_E_BUSY: return "somebody else holds the queue";
    case RINGBUF_E_CROWDED: return "as many are attached as the queue was made for (max_participants)";
    case RINGBUF_E_NO_FILES: return "out of file descriptors";
    case RINGBUF_E_NO_DIRECTORY: return "the directory for queues does not exist or cannot hold them";
    case RINGBUF_E_NO_DESCRIPTOR: return "this process closed the queue's file descriptor, and the file cannot be opened again";
    case RINGBUF_E_TOO_MANY: return "more tasks marked done than there were messages";
    case RINGBUF_E_SYSTEM: return "the operating system refused";
    case RINGBUF_E_DEAD_LETTER: return "a message that has had its attempts cannot be moved to the dead-letter queue, and stays";
    }
    return "unknown status";
}

const char *ringbuf_status_text(ringbuf_status status) { return text_of((enum ringbuf_code)status); }

const char *ringbuf_version(void) { return RINGBUF_VERSION_STRING; }

uint32_t ringbuf_layout_version(void) { return RBI_LAYOUT_VERSION; }

const char *ringbuf_error_call(void) { return rbi_last_refusal()->call; }

int ringbuf_error_number(void) { return rbi_last_refusal()->number; }

uint32_t ringbuf_error_layout(void) { return rbi_last_refusal()->layout; }
