/* A wall clock that is off by as many seconds as the first double of the file $CHAOS_CLOCK says, at once when it changes.

   Preloaded into meshd, and so into what it starts. The monotonic clock stays true. gRPC is told the truth: it makes absolute deadlines of
   the wall clock and hands them to the kernel, whose clock is not off. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) offset = page;
}

static struct timespec now_for(const void *caller) {
    struct timespec now;
    Dl_info from;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    if (!offset || !*offset) return now;
    if (dladdr(caller, &from) && from.dli_fname && strstr(from.dli_fname, "grpc")) return now;
    double seconds = floor(*offset);
    now.tv_sec += (time_t)seconds;
    now.tv_nsec += (long)((*offset - seconds) * 1e9);
    if (now.tv_nsec >= 1000000000L) {
        now.tv_nsec -= 1000000000L;
        now.tv_sec += 1;
    }
    return now;
}

int clock_gettime(clockid_t clock, struct timespec *result) {
    if (clock != CLOCK_REALTIME) return (int)syscall(SYS_clock_gettime, clock, result);
    *result = now_for(__builtin_return_address(0));
    return 0;
}

time_t time(time_t *result) {
    time_t seconds = now_for(__builtin_return_address(0)).tv_sec;
    if (result) *result = seconds;
    return seconds;
}

int gettimeofday(struct timeval *result, void *zone) {
    (void)zone;
    struct timespec now = now_for(__builtin_return_address(0));
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}
