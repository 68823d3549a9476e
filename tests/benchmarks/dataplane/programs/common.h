/* What the stub and the load share: the clock, and the record that each event of a stream carries. */
#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* @SSSSSSSS.NNNNNN.TTTTTTTTTTTTTTTT@: the request's seed, the event's number in its stream, microseconds of
 * CLOCK_MONOTONIC. There is no other @ in what the stub says. */
enum { SEED_DIGITS = 8, NUMBER_DIGITS = 6, TIME_DIGITS = 16 };
enum { NUMBER_AT = 1 + SEED_DIGITS + 1, TIME_AT = NUMBER_AT + NUMBER_DIGITS + 1 };
enum { RECORD_BYTES = TIME_AT + TIME_DIGITS + 1 };

static inline uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static inline void put_digits(char *to, int count, uint64_t value) {
    while (count--) {
        to[count] = (char)('0' + value % 10);
        value /= 10;
    }
}

static inline uint64_t get_digits(const char *from, int count) {
    uint64_t value = 0;
    while (count--)
        value = value * 10 + (uint64_t)(*from++ - '0');
    return value;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

#endif
