/* guard.h — floor 2: the memory of this process's queues, and what happens when somebody truncates a file under it.
 *
 * An access to a page that the file has no more raises SIGBUS.  Once installed, the guard maps zeros there, private to this
 * process, and sets a flag; the access goes on, and whoever made it looks at the flag before he believes what he has read or
 * says that it is written.  guard.c tells the rest; docs/decisions/0015-truncation.md why. */
#ifndef RBI_GUARD_H
#define RBI_GUARD_H

#include "atomics.h"
#include "platform.h"

/** One mapping. */
struct rbi_guarded;

/** Guard all mappings of this process, those that are there and those to come.  One thread at a time; again is OK.
 *  RINGBUF_OK or _SYSTEM. */
ringbuf_status rbi_guard_install(void);

/** A mapping made by rbi_map(): if memory of it is lost, set `flag` in *word.  One thread at a time adds and drops; neither may
 *  be under way in another thread at a fork.  NULL if there is no memory. */
struct rbi_guarded *rbi_guard_add(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors, rbi_atomic32 *word,
                                  uint32_t flag);

/** It is about to be unmapped: nobody touches it any more. */
void rbi_guard_drop(struct rbi_guarded *guarded);

/** Set `flag` in *word. */
void rbi_guard_lose(rbi_atomic32 *word, uint32_t flag);

#endif
