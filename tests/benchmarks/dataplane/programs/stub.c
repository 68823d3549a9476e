/* A stub of an OpenAI-compatible server: one thread, epoll, nothing allocated for a request.
 *
 *     stub [IDLE_US]
 *
 * It listens on a port of 127.0.0.1 that the system picks, and prints it. A connection that is not used for IDLE_US
 * after an answer is closed; 0 or nothing = never. A POST is answered as the last bytes of its body ask:
 *
 *     "stream":true         as many events as "max_tokens" says, the first one at once; else a chat completion
 *     "stub_interval_us":N  the time between two events
 *     "stub_silent_us":N    so long nothing is said at all
 *     "stub_flood":N        a stream of N events of 16 KB, as fast as they are taken
 *     "seed":N              comes back in the events, and in the list of what was cancelled
 *
 * POST /v1/traces is taken as by an OTLP collector, and the requests that it tells of are counted. GET /counts tells
 * what has happened; any other GET is answered with the list of models. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "answers.h"
#include "common.h"
#include "timers.h"

enum { MOST_FDS = 65536, READ_BYTES = 65536, LOOKED_AT = 512, REMEMBERED = 256, BATCH = 512 };

enum state { IDLE, SILENT, SILENT_STREAM, STREAM, FLOOD };
static const char *const STATES[] = {"idle", "plain", "silent", "stream", "stream"};

struct connection {
    int fd, writing; /* writing: epoll is asked when it takes more */
    enum state state;
    uint64_t serial; /* changes with each request and each answer: a timer that has another one is stale */
    uint64_t seed, interval_us;
    long left, number; /* of events */
    int usage;
    size_t block_at; /* how much of a flood's event is sent */
    char *in, *out;
    size_t in_len, in_room, out_len, out_room;
};

static struct connection *connections[MOST_FDS];
static uint64_t serials, idle_us;
static int poller, alarm_fd;

static unsigned long requests, events, accepted, traced, cancelled_count;
static struct {
    enum state state;
    uint64_t seed, at_us;
} cancelled[REMEMBERED];

/* --- connections ----------------------------------------------------------------------------------------------- */

static void later(const struct connection *c, uint64_t when) { add_timer(when, c->serial, c->fd); }

static void drop(struct connection *c) {
    if (c->state != IDLE) {
        size_t at = cancelled_count++ % REMEMBERED;
        cancelled[at].state = c->state, cancelled[at].seed = c->seed, cancelled[at].at_us = now_us();
    }
    close(c->fd);
    connections[c->fd] = NULL;
    free(c->in);
    free(c->out);
    free(c);
}

static void ask_to_write(struct connection *c, int writing) {
    if (c->writing == writing)
        return;
    c->writing = writing;
    struct epoll_event wanted = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wanted);
}

/* Each of these returns 0, or -1 if the connection is of no use any more. */

static int say(struct connection *c, const char *data, size_t size) {
    if (!c->out_len) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return -1;
        if (sent > 0)
            data += sent, size -= (size_t)sent;
    }
    if (!size)
        return 0;
    if (c->out_len + size > c->out_room) {
        c->out_room = (c->out_len + size) * 2;
        if (!(c->out = realloc(c->out, c->out_room)))
            die("realloc");
    }
    memcpy(c->out + c->out_len, data, size);
    c->out_len += size;
    ask_to_write(c, 1);
    return 0;
}

static void answered(struct connection *c) {
    c->state = IDLE;
    c->serial = ++serials;
    if (idle_us)
        later(c, now_us() + idle_us);
}

static int keep_flooding(struct connection *c) {
    while (c->left) {
        ssize_t sent = send(c->fd, flood + c->block_at, flood_len - c->block_at, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return -1;
        if (sent < 0) {
            ask_to_write(c, 1);
            return 0;
        }
        c->block_at += (size_t)sent;
        if (c->block_at == flood_len)
            c->block_at = 0, c->left--, events++;
    }
    answered(c);
    return say(c, STREAM_END, sizeof STREAM_END - 1);
}

static int write_on(struct connection *c) {
    if (c->out_len) {
        ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return -1;
        if (sent > 0) {
            memmove(c->out, c->out + sent, c->out_len - (size_t)sent);
            c->out_len -= (size_t)sent;
        }
    }
    if (c->out_len)
        return 0;
    ask_to_write(c, 0);
    return c->state == FLOOD ? keep_flooding(c) : 0;
}

static size_t put_event(struct connection *c, char *to) {
    memcpy(to, event, event_len);
    put_digits(to + record_at + 1, SEED_DIGITS, c->seed);
    to[record_at + NUMBER_AT - 1] = '.';
    put_digits(to + record_at + NUMBER_AT, NUMBER_DIGITS, (uint64_t)c->number++);
    to[record_at + TIME_AT - 1] = '.';
    put_digits(to + record_at + TIME_AT, TIME_DIGITS, now_us());
    c->left--;
    events++;
    return event_len;
}

static int end_stream(struct connection *c) {
    char out[2048], text[512];
    size_t size = chunk(out, sizeof out, DELTA "{},\"finish_reason\":\"stop\"}]}\n\n");
    if (c->usage) {
        snprintf(text, sizeof text,
                 EVENT "\"model\":\"stub\",\"choices\":[],\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":%ld,"
                       "\"total_tokens\":%ld}}\n\n",
                 c->number, 200 + c->number);
        size += chunk(out + size, sizeof out - size, text);
    }
    memcpy(out + size, STREAM_END, sizeof STREAM_END - 1);
    answered(c);
    return say(c, out, size + sizeof STREAM_END - 1);
}

static int begin_stream(struct connection *c) {
    char out[2048];
    memcpy(out, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    if (c->state == FLOOD)
        return say(c, out, sizeof STREAM_HEAD - 1) ? -1 : keep_flooding(c);
    c->state = STREAM;
    size_t size = put_event(c, out + sizeof STREAM_HEAD - 1);
    later(c, now_us() + c->interval_us);
    return say(c, out, sizeof STREAM_HEAD - 1 + size);
}

static int tick(struct connection *c, uint64_t when) {
    char out[1024];
    switch (c->state) {
    case IDLE: /* for too long */
        return -1;
    case SILENT:
        answered(c);
        return say(c, plain, plain_len);
    case SILENT_STREAM:
        return begin_stream(c);
    case STREAM:
        if (!c->left)
            return end_stream(c);
        later(c, when + c->interval_us);
        return say(c, out, put_event(c, out));
    default:
        return 0;
    }
}

/* --- requests -------------------------------------------------------------------------------------------------- */

static long field(const char *body, size_t size, const char *name, long missing) {
    if (size > LOOKED_AT)
        body += size - LOOKED_AT, size = LOOKED_AT;
    const char *found = memmem(body, size, name, strlen(name));
    return found ? strtol(found + strlen(name), NULL, 10) : missing;
}

static int is_in(const char *body, size_t size, const char *what) { return field(body, size, what, -1) != -1; }

static int tell_counts(struct connection *c) {
    static char text[REMEMBERED * 80 + 512], out[sizeof text + 512];
    int size = sprintf(text, "{\"requests\":%lu,\"events\":%lu,\"accepted\":%lu", requests, events, accepted);
    size += sprintf(text + size, ",\"traced\":%lu,\"cancelled\":[", traced);
    unsigned long first = cancelled_count > REMEMBERED ? cancelled_count - REMEMBERED : 0;
    for (unsigned long i = first; i < cancelled_count; i++)
        size += sprintf(text + size, "%s{\"while\":\"%s\",\"seed\":%lu,\"at_us\":%lu}", i == first ? "" : ",",
                        STATES[cancelled[i % REMEMBERED].state], (unsigned long)cancelled[i % REMEMBERED].seed,
                        (unsigned long)cancelled[i % REMEMBERED].at_us);
    strcpy(text + size, "]}");
    answered(c);
    return say(c, out, json(out, sizeof out, text));
}

static void count_traced(const char *body, size_t size) {
    static const char mark[] = "gen_ai.operation.name"; /* on one span of each request */
    const char *end = body + size;
    while ((body = memmem(body, (size_t)(end - body), mark, sizeof mark - 1)))
        traced++, body += sizeof mark - 1;
}

static int answer(struct connection *c, const char *head, const char *body, size_t size) {
    c->serial = ++serials;
    if (!strncmp(head, "GET /counts", 11))
        return tell_counts(c);
    if (!strncmp(head, "POST /v1/traces", 15)) {
        count_traced(body, size);
        answered(c);
        return say(c, TRACES_TAKEN, sizeof TRACES_TAKEN - 1);
    }
    if (strncmp(head, "POST", 4)) {
        answered(c);
        return say(c, models, models_len);
    }
    requests++;
    c->seed = (uint64_t)field(body, size, "\"seed\":", 0);
    long silent_us = field(body, size, "\"stub_silent_us\":", 0);
    if (!is_in(body, size, "\"stream\":true")) {
        c->state = SILENT;
        if (silent_us)
            return later(c, now_us() + (uint64_t)silent_us), 0;
        answered(c);
        return say(c, plain, plain_len);
    }
    c->number = 0;
    c->usage = is_in(body, size, "\"include_usage\":true");
    c->interval_us = (uint64_t)field(body, size, "\"stub_interval_us\":", 10000);
    c->left = field(body, size, "\"max_tokens\":", 100);
    long flooding = field(body, size, "\"stub_flood\":", 0);
    c->state = flooding ? FLOOD : SILENT_STREAM;
    if (flooding)
        c->left = flooding, c->block_at = 0;
    if (silent_us)
        return later(c, now_us() + (uint64_t)silent_us), 0;
    return begin_stream(c);
}

static int read_requests(struct connection *c) {
    size_t at = 0;
    while (c->state == IDLE && at < c->in_len) {
        char *head = c->in + at, *end = memmem(head, c->in_len - at, "\r\n\r\n", 4);
        if (!end)
            break;
        *end = 0; /* ends the head for the searches in it */
        char *length = strcasestr(head, "\ncontent-length:");
        int unknown = strcasestr(head, "\ntransfer-encoding:") != NULL;
        size_t size = length ? strtoul(length + 16, NULL, 10) : 0, whole = (size_t)(end + 4 - head) + size;
        *end = '\r';
        if (unknown)
            return say(c, LENGTH_REQUIRED, sizeof LENGTH_REQUIRED - 1), -1;
        if (c->in_len - at < whole)
            break;
        if (answer(c, head, end + 4, size))
            return -1;
        at += whole;
    }
    memmove(c->in, c->in + at, c->in_len - at);
    c->in_len -= at;
    return 0;
}

static int read_on(struct connection *c) {
    if (c->in_room - c->in_len < READ_BYTES) {
        c->in_room = (c->in_len + READ_BYTES) * 2;
        if (!(c->in = realloc(c->in, c->in_room + 1)))
            die("realloc");
    }
    ssize_t got = recv(c->fd, c->in + c->in_len, c->in_room - c->in_len, 0);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got <= 0)
        return -1;
    c->in_len += (size_t)got;
    c->in[c->in_len] = 0;
    return read_requests(c);
}

/* --- the loop -------------------------------------------------------------------------------------------------- */

static void set_alarm(void) {
    static uint64_t armed;
    if (!timer_count || timers[0].when == armed)
        return;
    armed = timers[0].when;
    struct itimerspec at = {.it_value = {(time_t)(armed / 1000000), (long)(armed % 1000000) * 1000}};
    timerfd_settime(alarm_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = fd < MOST_FDS ? calloc(1, sizeof *c) : NULL;
        if (!c)
            die("accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        c->serial = ++serials;
        connections[fd] = c;
        accepted++;
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &wanted);
    }
}

static void run_timers(void) {
    uint64_t now = now_us();
    while (timer_count && timers[0].when <= now) {
        struct timer due = next_timer();
        struct connection *c = connections[due.fd];
        if (c && c->serial == due.serial && (tick(c, due.when) || (c->state == IDLE && read_requests(c))))
            drop(c);
    }
    set_alarm();
}

static int listen_somewhere(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (fd < 0 || bind(fd, (void *)&address, size) || listen(fd, 4096) || getsockname(fd, (void *)&address, &size))
        die("listen");
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int count, char **arguments) {
    idle_us = count > 1 ? strtoul(arguments[1], NULL, 10) : 0;
    signal(SIGPIPE, SIG_IGN);
    prepare();
    poller = epoll_create1(0);
    alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int listener = listen_somewhere();
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, ready[BATCH];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wanted);
    wanted.data.fd = alarm_fd;
    epoll_ctl(poller, EPOLL_CTL_ADD, alarm_fd, &wanted);
    for (;;) {
        int found = epoll_wait(poller, ready, BATCH, -1);
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            uint64_t expirations;
            if (fd == listener)
                accept_all(listener);
            else if (fd == alarm_fd) {
                if (read(alarm_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                    die("timerfd");
            } else {
                struct connection *c = connections[fd];
                int broken = c && ready[i].events & EPOLLOUT && write_on(c);
                if (c && (broken || (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && read_on(c))))
                    drop(c);
            }
        }
        run_timers();
    }
}
