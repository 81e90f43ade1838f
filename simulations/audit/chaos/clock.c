/* The wall clock of one process, SOVFED_CLOCK_S seconds wrong (LD_PRELOAD). Monotonic clocks stay right, as they do on a
   machine whose date is wrong; what waits until a time of day waits as long as it meant to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define EPOCH 1000000000L /* seconds: later is a date, earlier the time since the machine started */

static long offset(void) {
    const char *text = getenv("SOVFED_CLOCK_S");
    return text ? atol(text) : 0;
}

static struct timespec until(const struct timespec *date) {
    struct timespec meant = *date;
    if (meant.tv_sec > EPOCH) meant.tv_sec -= offset();
    return meant;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

int pthread_cond_timedwait(pthread_cond_t *restrict told, pthread_mutex_t *restrict lock, const struct timespec *restrict date) {
    static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!wait) wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!wait) wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec meant = until(date);
    return wait(told, lock, &meant);
}

int sem_timedwait(sem_t *restrict free, const struct timespec *restrict date) {
    static int (*wait)(sem_t *, const struct timespec *);
    if (!wait) wait = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec meant = until(date);
    return wait(free, &meant);
}
