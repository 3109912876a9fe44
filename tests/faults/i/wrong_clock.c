/* A wall clock that jumps: an hour and ten years forwards and backwards, every 100 ms. To be put before a program
   with LD_PRELOAD, where it stands in for libfaketime. The monotonic clock is left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int (*clock_of)(clockid_t, struct timespec *);

static time_t jump(void) {
    static const time_t jumps[] = {0, 3600, -3600, 315360000, -315360000};
    struct timespec now;
    clock_of(CLOCK_MONOTONIC, &now);
    return jumps[(now.tv_sec * 10 + now.tv_nsec / 100000000) % 5];
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (!clock_of)
        clock_of = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = clock_of(clock, time);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        time->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
