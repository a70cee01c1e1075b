/* platform_model.h — what the explorer's world asks of its operating system beside platform.h. */
#ifndef PLATFORM_MODEL_H
#define PLATFORM_MODEL_H

#include "explorer.h"
#include "platform.h"

#include <pthread.h>
#include <stdio.h>

enum { PLATFORM_MODEL_FD = 100 /* + process: the descriptor of its queue's file */ };

/** Nobody holds anything. */
void platform_model_forget(void);
/** Mutexes between these are shared by several threads. */
void platform_model_share(void *from, void *to);
/** What is held now is held at the beginning of every execution. */
void platform_model_keep(void);
void platform_model_restore(void);
uint64_t platform_model_hash(void);
void platform_model_died(int process);

/** Whether the file system is full: no page can be reserved. */
extern bool platform_model_no_pages;

/** Sleep until the FIFO is up, or the deadline; and whether it is. */
void platform_model_poll(rbi_fd fd, int64_t deadline_ns);
bool platform_model_is_up(rbi_fd fd);

int model_mutex_lock(pthread_mutex_t *mutex);
int model_mutex_trylock(pthread_mutex_t *mutex);
int model_mutex_unlock(pthread_mutex_t *mutex);

#endif
