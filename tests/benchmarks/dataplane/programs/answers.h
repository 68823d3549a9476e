/* What the stub says. */
#ifndef ANSWERS_H
#define ANSWERS_H

#include "common.h"

enum { FLOOD_BYTES = 16384 }; /* of an event of a flood */

#define EVENT "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
#define DELTA EVENT "\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":"
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: stub\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "cache-control: no-cache\r\nx-request-id: 0123\r\ntransfer-encoding: chunked\r\n\r\n";
static const char TRACES_TAKEN[] =
    "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
static const char LENGTH_REQUIRED[] = "HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\n\r\n";
static const char STREAM_END[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

static char event[1024], plain[4096], models[1024], flood[FLOOD_BYTES + 64];
static size_t event_len, record_at, plain_len, models_len, flood_len;

static size_t chunk(char *to, size_t room, const char *data) {
    return (size_t)snprintf(to, room, "%zx\r\n%s\r\n", strlen(data), data);
}

static size_t json(char *to, size_t room, const char *data) {
    return (size_t)snprintf(to, room,
                            "HTTP/1.1 200 OK\r\nserver: stub\r\ncontent-type: application/json\r\n"
                            "x-request-id: 0123\r\ncontent-length: %zu\r\n\r\n%s",
                            strlen(data), data);
}

static void prepare(void) {
    char text[FLOOD_BYTES + 1], words[400];
    snprintf(text, sizeof text, DELTA "{\"content\":\"@%0*d@\"},\"finish_reason\":null}]}\n\n", RECORD_BYTES - 2, 0);
    event_len = chunk(event, sizeof event, text);
    record_at = (size_t)(strchr(event, '@') - event);
    for (size_t i = 0; i < sizeof words - 1; i++)
        words[i] = i % 6 == 5 ? ' ' : 'a';
    words[sizeof words - 1] = 0;
    snprintf(text, sizeof text,
             "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
             "\"model\":\"stub\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
             "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":100,\"total_tokens\":300}}",
             words);
    plain_len = json(plain, sizeof plain, text);
    models_len = json(models, sizeof models, "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\"}]}");
    size_t head = (size_t)snprintf(text, sizeof text, DELTA "{\"content\":\"");
    static const char tail[] = "\"},\"finish_reason\":null}]}\n\n";
    memset(text + head, 'a', FLOOD_BYTES - head);
    strcpy(text + FLOOD_BYTES - (sizeof tail - 1), tail);
    flood_len = chunk(flood, sizeof flood, text);
}

#endif
