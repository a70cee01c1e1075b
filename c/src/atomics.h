/* atomics.h — floor 0: the few memory orderings this library uses, by name, and the test points.
 *
 * Owns: the vocabulary.  A function's name says its order, so that a call site can be read without a manual and no order is ever
 * passed as an argument.  Every call site names the edge it belongs to ([E1] … in docs/memory-model.md) or says why it needs none.
 * Refuses to know: what is stored in the words.
 *
 * Test points.  RBI_POINT(name) stands between every two stores to shared memory.  In the library it is nothing.  In the test build
 * (RBI_TEST_POINTS) it calls rbi_point_hook with the point's number; the crash suite kills or stops a process there.  The list
 * below is the enumeration: a point that is not in it does not compile, and the suite fails on one that no operation reaches. */
#ifndef RBI_ATOMICS_H
#define RBI_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "shared atomics must be lock-free in hardware");

typedef _Atomic uint32_t rbi_atomic32;
typedef _Atomic uint64_t rbi_atomic64;
_Static_assert(sizeof(rbi_atomic32) == 4 && sizeof(rbi_atomic64) == 8, "atomics carry nothing beside their value");

#ifdef RBI_MODEL
#include "model_atomics.h" /* tests_c/model: the same functions, each of them a step of the explorer */
#else
#define RBI_DEFINE_ATOMICS(bits)                                                                                          \
    /* No order at all: the caller says why none is needed. */                                                            \
    static inline uint##bits##_t rbi_load_relaxed##bits(const rbi_atomic##bits *word)                                     \
    { return atomic_load_explicit((rbi_atomic##bits *)(uintptr_t)word, memory_order_relaxed); }                           \
    static inline void rbi_store_relaxed##bits(rbi_atomic##bits *word, uint##bits##_t value)                              \
    { atomic_store_explicit(word, value, memory_order_relaxed); }                                                         \
    static inline uint##bits##_t rbi_add_relaxed##bits(rbi_atomic##bits *word, uint##bits##_t value)                      \
    { return atomic_fetch_add_explicit(word, value, memory_order_relaxed); }                                              \
    /* Half of an edge. */                                                                                                \
    static inline uint##bits##_t rbi_load_acquire##bits(const rbi_atomic##bits *word)                                     \
    { return atomic_load_explicit((rbi_atomic##bits *)(uintptr_t)word, memory_order_acquire); }                           \
    static inline void rbi_store_release##bits(rbi_atomic##bits *word, uint##bits##_t value)                              \
    { atomic_store_explicit(word, value, memory_order_release); }                                                         \
    /* One total order with all other *_total operations: both sides of a "write mine, then look at yours". */            \
    static inline uint##bits##_t rbi_load_total##bits(const rbi_atomic##bits *word)                                       \
    { return atomic_load_explicit((rbi_atomic##bits *)(uintptr_t)word, memory_order_seq_cst); }                           \
    static inline void rbi_store_total##bits(rbi_atomic##bits *word, uint##bits##_t value)                                \
    { atomic_store_explicit(word, value, memory_order_seq_cst); }                                                         \
    static inline uint##bits##_t rbi_add_total##bits(rbi_atomic##bits *word, uint##bits##_t value)                        \
    { return atomic_fetch_add_explicit(word, value, memory_order_seq_cst); }                                              \
    /* Strong; on failure the loop reads the word anew, so failure carries acquire and its value is thrown away. */       \
    static inline bool rbi_cas_acq_rel##bits(rbi_atomic##bits *word, uint##bits##_t expected, uint##bits##_t desired)     \
    { return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_acq_rel,                      \
                                                     memory_order_acquire); }                                             \
    static inline bool rbi_cas_total##bits(rbi_atomic##bits *word, uint##bits##_t expected, uint##bits##_t desired)       \
    { return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst,                      \
                                                     memory_order_acquire); }

RBI_DEFINE_ATOMICS(32)
RBI_DEFINE_ATOMICS(64)
#undef RBI_DEFINE_ATOMICS
#endif

/* Words that only this process writes, such as its own counters.  While it has one thread, one instruction that is not locked does what a
 * locked one would, at a fifth of its price; four of them stand on the way of every message.  The C library knows: it clears the flag
 * before a second thread can run, and a call of ours does not start threads in between.  One instruction, and not a load and a store: a
 * signal handler, which may call the library as well, comes before or after an instruction, but it would come in between two, and what
 * it has counted would be lost.  Where there is no such instruction, the locked one it is. */
#if defined(__has_include) && !defined(RBI_SINGLE_THREADED) && defined(__x86_64__)
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define RBI_SINGLE_THREADED (__libc_single_threaded)
#endif
#endif
#ifndef RBI_SINGLE_THREADED
#define RBI_SINGLE_THREADED 0
#endif

/** Add to a counter of our own; nobody learns anything else from it. */
static inline void rbi_own_add64(rbi_atomic64 *word, uint64_t value)
{
#if defined(__x86_64__)
    if (RBI_SINGLE_THREADED) {
        __asm__ volatile("addq %1, %0" : "+m"(*word) : "er"(value) : "cc");
        return;
    }
#endif
    rbi_add_relaxed64(word, value);
}

/** Add in total order among our own threads; returns the value before.
 *  With one thread, an access to memory before or after it in the program stays there in the code: it may raise a signal whose
 *  handler changes the word (guard.c): so says "memory". */
static inline uint32_t rbi_own_add_total32(rbi_atomic32 *word, uint32_t value)
{
#if defined(__x86_64__)
    if (RBI_SINGLE_THREADED) {
        __asm__ volatile("xaddl %0, %1" : "+r"(value), "+m"(*word) : : "memory", "cc");
        return value;
    }
#endif
    return rbi_add_total32(word, value);
}

/** Tell the processor that this is a spin loop. */
static inline void rbi_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Every test point.  The name says what has just been done. */
#define RBI_POINTS(X)                                                                                                     \
    /* put */                                                                                                             \
    X(put_began) X(claimed) X(tail_moved) X(payload_written) X(size_written) X(published) X(published_late)               \
    X(put_counted) X(put_woke) X(claim_voided)                                                                            \
    /* get, take, ack, nack */                                                                                            \
    X(take_began) X(record_owned) X(taken) X(head_moved) X(retaken) X(copied) X(get_counted) X(released) X(release_woke)  \
    X(letter_put) X(letter_ended) X(nack_marked) X(given_back) X(hint_set) X(hint_cleared) X(skip_marked) X(skipped)      \
    X(reclaimed) X(pages_reserved) X(reserved_published) X(began_again)                                                   \
    X(lane_closed) X(put_epoch_moved) X(lane_opened) X(get_epoch_moved)                                                   \
    /* the arena */                                                                                                       \
    X(run_begun) X(run_grown) X(run_backed) X(block_freed) X(run_freed) X(entry_filled) X(run_queued) X(run_leased)       \
    X(attempt_counted) X(run_retaken) X(run_returned) X(run_kept) X(run_ended)                                            \
    X(parts_reserved) X(parts_raised) X(blocks_reserved) X(blocks_given_back) X(room_woke)                                \
    X(turn_taken) X(turn_renewed) X(turn_ended)                                                                           \
    /* waiting */                                                                                                         \
    X(waiter_announced) X(waiter_woke) X(event_bumped)                                                                    \
    /* recovery */                                                                                                        \
    X(look_began) X(look_ended)                                                                                           \
    X(recovery_locked) X(recovery_tail_helped) X(recovery_voided) X(recovery_returned) X(recovery_swept)                  \
    X(recovery_hinted) X(recovery_woke) X(recovery_forgave) X(recovery_freed)                                             \
    X(recovery_lease_undone) X(recovery_run_dropped) X(recovery_run_freed) X(recovery_turn_ended)                         \
    /* create, attach */                                                                                                  \
    X(file_made) X(file_sized) X(header_reserved) X(header_written) X(stamp_written) X(creator_present)                   \
    X(private_made) X(private_present) X(private_removed)                                                                 \
    X(creator_attached) X(linked) X(opened) X(present) X(mapped) X(entry_locked) X(entry_written) X(entry_published)      \
    /* close, unlink */                                                                                                   \
    X(close_began) X(entry_freed) X(entry_unlocked) X(presence_left) X(alone) X(name_locked) X(name_checked) X(removed)   \
    X(unlinked) X(leftover_alone)                                                                                         \
    /* shutdown, task_done */                                                                                             \
    X(shutdown_set) X(shutdown_woke) X(done_counted)                                                                      \
    /* descriptors */                                                                                                     \
    X(flag_made) X(flag_locked) X(listener_counted) X(listeners_set) X(listeners_cleared) X(flag_raised) X(flag_lowered)  \
    X(flag_alone) X(listeners_gone) X(flag_removed)

enum rbi_point {
#define RBI_POINT_ENUM(name) RBI_POINT_##name,
    RBI_POINTS(RBI_POINT_ENUM)
#undef RBI_POINT_ENUM
    RBI_POINT_COUNT
};

#ifdef RBI_TEST_POINTS
extern void (*rbi_point_hook)(enum rbi_point point);
#define RBI_POINT(name) do { if (rbi_point_hook) rbi_point_hook(RBI_POINT_##name); } while (0)
#else
#define RBI_POINT(name) ((void)0)
#endif

#endif
