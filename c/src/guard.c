/* guard.c — floor 2: zeros in place of memory that a truncated file has no more.
 *
 * Everything here but adding, dropping and installing runs in a signal handler, in whatever thread has touched what is missing,
 * between any two of its instructions and beside other threads that do the same.  So it takes no lock, waits for nobody, and
 * allocates nothing.
 *
 * Whose is the address?  Mappings are in a list that only grows; who drops one leaves its entry for the next.  An entry is
 * written under an odd version and read between two looks at the version, all in one total order.  A reader does not try again
 * when the version has changed: the mapping that was touched stays in the list while it is being touched, so an entry that
 * changes is another one's.
 *
 * What is missing?  Files are truncated from the end: what lies behind a missing page in the file is missing, too.  So all of
 * that is replaced at once, in both places where the file's mirrored regions are mapped, and what lies before stays as it is:
 * who looks at a message there goes on seeing it.  If some of that is missing as well, it is replaced when it is touched.  No
 * page is touched in vain twice, so this ends.  Two threads that touch missing pages at once both do it, and the second puts
 * zeros over what the first has written into its zeros: nobody will believe that anyway.
 *
 * The flag comes first, then the zeros: see rbi_handle_leave().
 *
 * The call under way goes on, among zeros.  It ends, because no call trusts what it finds in the file (docs/layout.md), and a
 * sleeper looks at the flag; and what it would have returned is replaced by RINGBUF_E_CORRUPT. */
#include "guard.h"

#include <stdlib.h>

struct rbi_guarded {
    rbi_atomic64 version;       /* odd: being changed, or free */
    rbi_atomic64 base;          /* these are written as rarely as read: no reason to spare the total order */
    rbi_atomic64 prefix_bytes;
    rbi_atomic64 mirror_bytes;
    rbi_atomic64 bytes;         /* of the whole mapping */
    rbi_atomic64 word;          /* rbi_atomic32 *, */
    rbi_atomic32 flag;          /* and what to set there */
    struct rbi_guarded *next;   /* written before the entry is listed, and never again */
};

static _Atomic(struct rbi_guarded *) guarded_list;

static uint64_t page_bytes;     /* written before the handler is installed */

static struct rbi_guarded *first_entry(void) { return atomic_load_explicit(&guarded_list, memory_order_seq_cst); }

void rbi_guard_lose(rbi_atomic32 *word, uint32_t flag)
{
    for (uint32_t seen = rbi_load_total32(word); !(seen & flag); seen = rbi_load_total32(word))
        if (rbi_cas_total32(word, seen, seen | flag)) return;
}

/** Put zeros in place of the page at `offset` and of all that lies behind it in the file. */
static bool replace(const struct rbi_guarded *entry, uint64_t offset)
{
    const uint64_t base = rbi_load_total64(&entry->base), prefix = rbi_load_total64(&entry->prefix_bytes);
    const uint64_t mirror = rbi_load_total64(&entry->mirror_bytes), bytes = rbi_load_total64(&entry->bytes);
    offset -= offset % page_bytes;
    bool replaced;
    if (offset < prefix) {
        replaced = rbi_map_zeros(base + offset, bytes - offset);
    } else {
        const uint64_t within = (offset - prefix) % mirror;
        const uint64_t first = offset - (offset - prefix) % (2 * mirror) + within; /* in the first of its region's two places */
        const uint64_t second = first + mirror;
        replaced = rbi_map_zeros(base + first, mirror - within) && rbi_map_zeros(base + second, bytes - second);
    }
    /* Where the system promises no more memory than it has, there may be none for so much at once. */
    return replaced || rbi_map_zeros(base + offset, page_bytes);
}

/** The page at this address is missing: whether it was one of ours, and is there now. */
static bool mend(uint64_t address)
{
    for (struct rbi_guarded *entry = first_entry(); entry; entry = entry->next) {
        uint64_t version = rbi_load_total64(&entry->version);
        if (version & 1) continue;
        uint64_t offset = address - rbi_load_total64(&entry->base);
        bool inside = offset < rbi_load_total64(&entry->bytes);
        if (!inside || rbi_load_total64(&entry->version) != version) continue;
        /* It is being touched, so it does not change any more. */
        rbi_guard_lose((rbi_atomic32 *)(uintptr_t)rbi_load_total64(&entry->word), rbi_load_total32(&entry->flag));
        return replace(entry, offset);
    }
    return false;
}

ringbuf_status rbi_guard_install(void)
{
    page_bytes = rbi_page_bytes();
    return rbi_on_missing_page(mend);
}

struct rbi_guarded *rbi_guard_add(void *base, uint64_t prefix_bytes, uint64_t mirror_bytes, uint32_t mirrors, rbi_atomic32 *word,
                                  uint32_t flag)
{
    struct rbi_guarded *entry = first_entry();
    while (entry && !(rbi_load_total64(&entry->version) & 1)) entry = entry->next;
    const bool is_new = !entry;
    if (is_new) {
        entry = calloc(1, sizeof *entry);
        if (!entry) return NULL;
        atomic_init(&entry->version, 1);
        entry->next = first_entry();
    }
    rbi_store_total64(&entry->base, (uintptr_t)base);
    rbi_store_total64(&entry->prefix_bytes, prefix_bytes);
    rbi_store_total64(&entry->mirror_bytes, mirror_bytes);
    rbi_store_total64(&entry->bytes, prefix_bytes + 2 * mirror_bytes * mirrors);
    rbi_store_total64(&entry->word, (uintptr_t)word);
    rbi_store_total32(&entry->flag, flag);
    rbi_add_total64(&entry->version, 1);
    if (is_new) atomic_store_explicit(&guarded_list, entry, memory_order_seq_cst);
    return entry;
}

void rbi_guard_drop(struct rbi_guarded *guarded)
{
    rbi_add_total64(&guarded->version, 1);
}
