/* Timers of connections: a heap, the next one first. */
#ifndef TIMERS_H
#define TIMERS_H

#include "common.h"

struct timer {
    uint64_t when, serial;
    int fd;
};

static struct timer *timers;
static size_t timer_count, timer_room;

static inline void add_timer(uint64_t when, uint64_t serial, int fd) {
    if (timer_count == timer_room) {
        timer_room = timer_room ? timer_room * 2 : 1024;
        if (!(timers = realloc(timers, timer_room * sizeof *timers)))
            die("realloc");
    }
    size_t at = timer_count++;
    for (; at && timers[(at - 1) / 2].when > when; at = (at - 1) / 2)
        timers[at] = timers[(at - 1) / 2];
    timers[at] = (struct timer){when, serial, fd};
}

static inline struct timer next_timer(void) {
    struct timer first = timers[0], last = timers[--timer_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < timer_count) {
        if (child + 1 < timer_count && timers[child + 1].when < timers[child].when)
            child++;
        if (timers[child].when >= last.when)
            break;
        timers[at] = timers[child];
        at = child;
    }
    timers[at] = last;
    return first;
}

#endif
