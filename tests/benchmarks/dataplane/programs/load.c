/* Load for a server with OpenAI's chat API: one thread, epoll, keep-alive, one request at a time on each connection.
 *
 *     load PORT REQUEST_FILE EVENTS CONNECTIONS WARM_S SECONDS REQUESTS
 *
 * REQUEST_FILE holds one raw request with "seed":10000000 in it, eight digits of which are replaced for each request.
 * EVENTS: how many events each answer streams; 0 = answers are not streamed. After WARM_S it prints `begin` and counts
 * for SECONDS, or until it has REQUESTS answers (0 = any number); then it prints `end`, and what it has seen as JSON.
 * Faults are counted from the start on; times are in microseconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

enum { HEAD_BYTES = 4096, READ_BYTES = 262144, KEPT = RECORD_BYTES - 1, BATCH = 512 };

struct connection {
    int fd, connected, busy, writing, closing; /* closing: the server closes after this answer */
    size_t sent, head_len, kept_len;
    int in_body;
    long left;           /* of the body, in bytes; -1 = chunked */
    uint64_t seed, next; /* next: number of the event that should come now */
    uint64_t asked_us;
    char head[HEAD_BYTES + 1], kept[KEPT]; /* kept: the end of what was read, where a record may have begun */
};

struct samples {
    uint32_t *at;
    size_t count, room;
};

static struct samples whole, first, delay; /* a request's time, that to its first event; an event's time on its way */
static unsigned long answers, events, broken, refused, lost, reordered, foreign;
static char first_fault[200];
static uint64_t begun_us; /* 0 = still warming up */
static uint64_t seeds = 10000000;

static int poller, port;
static char *request, *seed_digits;
static size_t request_len;
static unsigned long events_each;

static void add(struct samples *to, uint64_t value) {
    if (to->count == to->room) {
        to->room = to->room ? to->room * 2 : 1 << 16;
        if (!(to->at = realloc(to->at, to->room * sizeof *to->at)))
            die("realloc");
    }
    to->at[to->count++] = (uint32_t)value;
}

static void fault(unsigned long *counter, const char *what) {
    ++*counter;
    if (first_fault[0])
        return;
    snprintf(first_fault, sizeof first_fault, "%s", what);
    for (char *c = first_fault; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ' || (unsigned char)*c > '~')
            *c = ' ';
}

/* --- asking ---------------------------------------------------------------------------------------------------- */

static void watch(struct connection *c, int operation, int writing) {
    struct epoll_event wanted = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    c->writing = writing;
    epoll_ctl(poller, operation, c->fd, &wanted);
}

static void dial(struct connection *c) {
    int one = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memset(c, 0, sizeof *c);
    if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&address, sizeof address) && errno != EINPROGRESS)
        die("connect");
    watch(c, EPOLL_CTL_ADD, 1);
}

static void redial(struct connection *c) {
    close(c->fd);
    dial(c);
}

static void send_on(struct connection *c) {
    put_digits(seed_digits, SEED_DIGITS, c->seed);
    ssize_t sent = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
    if (sent > 0)
        c->sent += (size_t)sent;
    else if (errno != EAGAIN)
        return; /* reading tells what has happened */
    if (c->writing != (c->sent < request_len))
        watch(c, EPOLL_CTL_MOD, c->sent < request_len);
}

static void ask(struct connection *c) {
    c->busy = 1;
    c->sent = c->head_len = c->kept_len = 0;
    c->in_body = c->closing = 0;
    c->next = 0;
    c->seed = seeds;
    seeds = seeds == 99999999 ? 10000000 : seeds + 1;
    c->asked_us = now_us();
    send_on(c);
}

/* --- what comes back ------------------------------------------------------------------------------------------- */

static void answered(struct connection *c, uint64_t now) {
    if (begun_us) {
        answers++;
        if (c->asked_us >= begun_us)
            add(&whole, now - c->asked_us);
    }
    if (events_each && c->next < events_each)
        lost += events_each - c->next;
    c->busy = 0;
    if (c->closing)
        redial(c);
    else
        ask(c);
}

static void record(struct connection *c, const char *at, uint64_t now) {
    uint64_t number = get_digits(at + NUMBER_AT, NUMBER_DIGITS);
    if (get_digits(at + 1, SEED_DIGITS) != c->seed) {
        foreign++;
        return;
    }
    if (number < c->next) {
        reordered++; /* it was taken for lost */
        lost -= lost > 0;
        return;
    }
    lost += number - c->next;
    if (!c->next && c->asked_us >= begun_us && begun_us)
        add(&first, now - c->asked_us);
    c->next = number + 1;
    if (begun_us) {
        events++;
        add(&delay, now - get_digits(at + TIME_AT, TIME_DIGITS));
    }
}

/* Reads events. There is room for KEPT bytes before `data`. */
static void stream(struct connection *c, char *data, size_t size, uint64_t now) {
    char *end = data + size, *at = data - c->kept_len;
    memcpy(at, c->kept, c->kept_len);
    int over = end - at >= 5 && !memcmp(end - 5, "0\r\n\r\n", 5) && memmem(at, (size_t)(end - at), "[DONE]", 6);
    char *unread = at;
    while ((at = memchr(unread, '@', (size_t)(end - unread))) && end - at >= RECORD_BYTES) {
        if (at[RECORD_BYTES - 1] == '@')
            record(c, at, now);
        unread = at + RECORD_BYTES;
    }
    if (!at) /* no record has begun: keep enough of the end to know a [DONE] that comes in two reads */
        at = end - unread > KEPT ? end - KEPT : unread;
    c->kept_len = (size_t)(end - at);
    memcpy(c->kept, at, c->kept_len);
    if (over)
        answered(c, now);
}

static void body(struct connection *c, char *data, size_t size, uint64_t now) {
    if (c->left < 0) {
        stream(c, data, size, now);
        return;
    }
    c->left -= (long)size;
    if (c->left < 0)
        fault(&broken, "there is more than the answer");
    if (c->left <= 0)
        answered(c, now);
}

static void head(struct connection *c, char *data, size_t size, uint64_t now) {
    size_t taken = size < HEAD_BYTES - c->head_len ? size : HEAD_BYTES - c->head_len;
    size_t before = c->head_len;
    memcpy(c->head + before, data, taken);
    c->head_len += taken;
    c->head[c->head_len] = 0;
    char *end = memmem(c->head, c->head_len, "\r\n\r\n", 4);
    if (!end) {
        if (c->head_len == HEAD_BYTES)
            fault(&broken, "the head has no end"), redial(c);
        return;
    }
    end[2] = 0;
    if (strncmp(c->head, "HTTP/1.1 200", 12))
        fault(&refused, c->head);
    char *length = strcasestr(c->head, "\ncontent-length:");
    c->closing = strcasestr(c->head, "\nconnection: close") != NULL;
    c->left = length ? strtol(length + 16, NULL, 10) : -1;
    c->in_body = 1;
    size_t used = (size_t)(end + 4 - c->head) - before;
    body(c, data + used, size - used, now);
}

static void read_on(struct connection *c) {
    static char room[KEPT + READ_BYTES];
    char *data = room + KEPT;
    ssize_t got = recv(c->fd, data, READ_BYTES, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (c->busy || !c->connected)
            fault(&broken, got ? strerror(errno) : "the connection ended within an answer");
        redial(c);
    } else if (!c->busy)
        fault(&broken, "something came unasked"), redial(c);
    else if (c->in_body)
        body(c, data, (size_t)got, now_us());
    else
        head(c, data, (size_t)got, now_us());
}

/* --- the whole ------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, struct samples *of) {
    static const struct {
        const char *name;
        double share;
    } shares[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    qsort(of->at, of->count, sizeof *of->at, ascending);
    printf(",\"%s\":{\"count\":%zu", name, of->count);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        size_t rank = (size_t)((double)(of->count ? of->count - 1 : 0) * shares[i].share);
        printf(",\"%s\":%u", shares[i].name, of->count ? of->at[rank] : 0);
    }
    printf("}");
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file || fseek(file, 0, SEEK_END))
        die(path);
    request_len = (size_t)ftell(file);
    rewind(file);
    request = malloc(request_len);
    if (!request || fread(request, 1, request_len, file) != request_len)
        die(path);
    fclose(file);
    seed_digits = memmem(request, request_len, "\"seed\":10000000", 15);
    if (!seed_digits) {
        fputs("the request has no \"seed\":10000000\n", stderr);
        exit(1);
    }
    seed_digits += 7;
}

static void handle(struct connection *c, uint32_t what) {
    if (what & EPOLLOUT) {
        if (!c->connected && !(what & (EPOLLERR | EPOLLHUP))) {
            c->connected = 1;
            ask(c);
        } else if (c->connected)
            send_on(c);
    }
    if (what & (EPOLLIN | EPOLLERR | EPOLLHUP))
        read_on(c);
}

int main(int count, char **arguments) {
    if (count != 8) {
        fputs("usage: load PORT REQUEST_FILE EVENTS CONNECTIONS WARM_S SECONDS REQUESTS\n", stderr);
        return 2;
    }
    port = atoi(arguments[1]);
    read_request(arguments[2]);
    events_each = strtoul(arguments[3], NULL, 10);
    size_t connections = strtoul(arguments[4], NULL, 10), open = 0;
    double warm_us = atof(arguments[5]) * 1e6, window_us = atof(arguments[6]) * 1e6;
    unsigned long most = strtoul(arguments[7], NULL, 10);
    struct connection *all = calloc(connections, sizeof *all);
    struct epoll_event ready[BATCH];
    poller = epoll_create1(0);
    uint64_t started = now_us(), now = started;
    while (!begun_us || ((double)(now - begun_us) < window_us && !(most && answers >= most))) {
        while (open < connections && (double)(now - started) >= (double)open * warm_us * .6 / (double)connections)
            dial(&all[open++]); /* one after the other, so that the streams do not speak all at once */
        int found = epoll_wait(poller, ready, BATCH, 1);
        for (int i = 0; i < found; i++)
            handle(ready[i].data.ptr, ready[i].events);
        now = now_us();
        if (!begun_us && (double)(now - started) >= warm_us) {
            begun_us = now;
            puts("begin");
            fflush(stdout);
        }
    }
    printf("end\n{\"seconds\":%.6f", (double)(now - begun_us) / 1e6);
    fflush(stdout);
    printf(",\"answers\":%lu,\"events\":%lu,\"broken\":%lu,\"refused\":%lu", answers, events, broken, refused);
    printf(",\"lost\":%lu,\"reordered\":%lu,\"foreign\":%lu,\"fault\":\"%s\"", lost, reordered, foreign, first_fault);
    tell("whole", &whole);
    tell("first", &first);
    tell("delay", &delay);
    puts("}");
}
