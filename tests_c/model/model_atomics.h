/* model_atomics.h — atomics.h for the explorer: the same vocabulary, each word of it a step that the explorer may put anything before.
 *
 * Included by atomics.h in place of the real operations when RBI_MODEL is defined. */
#ifndef RBI_MODEL_ATOMICS_H
#define RBI_MODEL_ATOMICS_H

/* An addition to a word of one's own is one step, as in a process with several threads. */
#define RBI_SINGLE_THREADED 0

enum model_order { MODEL_RELAXED, MODEL_ACQUIRE, MODEL_RELEASE, MODEL_ACQ_REL, MODEL_TOTAL };

uint64_t model_load(const void *word, unsigned bytes, enum model_order order);
void model_store(void *word, unsigned bytes, uint64_t value, enum model_order order);
uint64_t model_add(void *word, unsigned bytes, uint64_t value, enum model_order order);
bool model_cas(void *word, unsigned bytes, uint64_t expected, uint64_t desired, enum model_order order);

#define RBI_DEFINE_MODEL_ATOMICS(bits)                                                                                    \
    static inline uint##bits##_t rbi_load_relaxed##bits(const rbi_atomic##bits *word)                                     \
    { return (uint##bits##_t)model_load((const void *)word, bits / 8, MODEL_RELAXED); }                                   \
    static inline void rbi_store_relaxed##bits(rbi_atomic##bits *word, uint##bits##_t value)                              \
    { model_store((void *)word, bits / 8, value, MODEL_RELAXED); }                                                        \
    static inline uint##bits##_t rbi_add_relaxed##bits(rbi_atomic##bits *word, uint##bits##_t value)                      \
    { return (uint##bits##_t)model_add((void *)word, bits / 8, value, MODEL_RELAXED); }                                   \
    static inline uint##bits##_t rbi_load_acquire##bits(const rbi_atomic##bits *word)                                     \
    { return (uint##bits##_t)model_load((const void *)word, bits / 8, MODEL_ACQUIRE); }                                   \
    static inline void rbi_store_release##bits(rbi_atomic##bits *word, uint##bits##_t value)                              \
    { model_store((void *)word, bits / 8, value, MODEL_RELEASE); }                                                        \
    static inline uint##bits##_t rbi_load_total##bits(const rbi_atomic##bits *word)                                       \
    { return (uint##bits##_t)model_load((const void *)word, bits / 8, MODEL_TOTAL); }                                     \
    static inline void rbi_store_total##bits(rbi_atomic##bits *word, uint##bits##_t value)                                \
    { model_store((void *)word, bits / 8, value, MODEL_TOTAL); }                                                          \
    static inline uint##bits##_t rbi_add_total##bits(rbi_atomic##bits *word, uint##bits##_t value)                        \
    { return (uint##bits##_t)model_add((void *)word, bits / 8, value, MODEL_TOTAL); }                                     \
    static inline bool rbi_cas_acq_rel##bits(rbi_atomic##bits *word, uint##bits##_t expected, uint##bits##_t desired)     \
    { return model_cas((void *)word, bits / 8, expected, desired, MODEL_ACQ_REL); }                                       \
    static inline bool rbi_cas_total##bits(rbi_atomic##bits *word, uint##bits##_t expected, uint##bits##_t desired)       \
    { return model_cas((void *)word, bits / 8, expected, desired, MODEL_TOTAL); }

RBI_DEFINE_MODEL_ATOMICS(32)
RBI_DEFINE_MODEL_ATOMICS(64)
#undef RBI_DEFINE_MODEL_ATOMICS

#endif
