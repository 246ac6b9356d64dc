/* A closed-loop DNS client: OUTSTANDING queries are under way at any time, each answer is checked byte for byte, then the next is sent.

   client ADDRESS PORT OUTSTANDING SECONDS < QUERIES

   A line of QUERIES: the query in hex, the response code, and the A records it must be answered with, in hex or "-" for none. The lines
   are asked in turns. Prints: answered lost wrong seconds p50_us p99_us max_us. An answer is wrong unless it has the id and the question
   exactly as asked, the response code, and in any order all of the records and no other. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, PACKET = 4096, RECORDS = 64, SAMPLES = 1 << 22, LOST_AFTER_S = 1 };

struct query {
    unsigned char packet[512];
    int size, question_end, rcode, count;
    unsigned char records[RECORDS][4];
};

struct flight {
    struct query *query;
    double sent_at;
};

static struct query *queries;
static int query_count, next_query;
static struct flight flights[65536];
static unsigned next_id;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int from_hex(const char *text, unsigned char *bytes) {
    int size = strlen(text) / 2;
    for (int i = 0; i < size; i++) sscanf(text + 2 * i, "%2hhx", bytes + i);
    return size;
}

static void read_queries(void) {
    static char packet[2048], records[2048];
    int rcode;
    while (scanf("%2047s %d %2047s", packet, &rcode, records) == 3) {
        queries = realloc(queries, (query_count + 1) * sizeof *queries);
        struct query *q = queries + query_count++;
        memset(q, 0, sizeof *q);
        q->size = from_hex(packet, q->packet);
        q->rcode = rcode;
        q->count = *records == '-' ? 0 : from_hex(records, q->records[0]) / 4;
        q->question_end = 12 + strlen((char *)q->packet + 12) + 5;
    }
}

/* Each record must be IN A, own the question's name (a pointer to it, or written out), and be one of those expected, each once. */
static int is_right(const struct query *q, const unsigned char *answer, int size) {
    int name_size = q->question_end - 16, at = q->question_end;
    unsigned long long seen = 0;
    if (size < at || !(answer[2] & 0x80) || (answer[3] & 15) != q->rcode || answer[4] || answer[5] != 1) return 0;
    if (answer[6] || answer[7] != q->count || memcmp(answer + 12, q->packet + 12, at - 12)) return 0;
    for (int i = 0; i < q->count; i++) {
        if (size - at >= 2 && answer[at] == 0xc0 && answer[at + 1] == 12) at += 2;
        else if (size - at >= name_size && !strncasecmp((char *)answer + at, (char *)q->packet + 12, name_size)) at += name_size;
        else return 0;
        if (size - at < 14 || memcmp(answer + at, "\0\1\0\1", 4) || memcmp(answer + at + 8, "\0\4", 2)) return 0;
        int found = -1;
        for (int r = 0; r < q->count; r++)
            if (!memcmp(q->records[r], answer + at + 10, 4)) found = r;
        if (found < 0 || seen >> found & 1) return 0;
        seen |= 1ULL << found;
        at += 14;
    }
    return 1;
}

static int compare(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int outstanding = atoi(argv[3]);
    double seconds = atof(argv[4]);
    read_queries();
    if (!query_count || outstanding < 1 || outstanding > BATCH) return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    struct timeval timeout = {LOST_AFTER_S, 0};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (connect(sock, (struct sockaddr *)&address, sizeof address)) return 1;

    static unsigned char in[BATCH][PACKET], out[BATCH][512];
    struct iovec in_pieces[BATCH], out_pieces[BATCH];
    struct mmsghdr received[BATCH], sent[BATCH];
    memset(received, 0, sizeof received);
    memset(sent, 0, sizeof sent);
    for (int i = 0; i < BATCH; i++) {
        in_pieces[i] = (struct iovec){in[i], PACKET};
        received[i].msg_hdr.msg_iov = in_pieces + i;
        sent[i].msg_hdr.msg_iov = out_pieces + i;
        received[i].msg_hdr.msg_iovlen = sent[i].msg_hdr.msg_iovlen = 1;
    }
    double *latencies = malloc(SAMPLES * sizeof *latencies), start = now(), end = start + seconds, time = start;
    long answered = 0, lost = 0, wrong = 0;
    int wanted = outstanding;
    for (;;) {
        for (int i = 0; i < wanted; i++) {
            unsigned id = next_id++ & 0xffff;
            struct query *q = queries + next_query++ % query_count;
            memcpy(out[i], q->packet, q->size);
            out[i][0] = id >> 8;
            out[i][1] = id;
            out_pieces[i] = (struct iovec){out[i], q->size};
            flights[id] = (struct flight){q, time};
        }
        if (outstanding == 1) send(sock, out[0], out_pieces[0].iov_len, 0);
        else
            for (int done = 0; done < wanted;) {
                int n = sendmmsg(sock, sent + done, wanted - done, 0);
                done += n > 0 ? n : 1;
            }
        int count;
        if (outstanding == 1) {
            int size = recv(sock, in[0], PACKET, 0);
            received[0].msg_len = size;
            count = size < 0 ? -1 : 1;
        } else count = recvmmsg(sock, received, BATCH, MSG_WAITFORONE, NULL);
        time = now();
        if (count < 0) { /* nothing for a second: all that was under way is lost */
            lost += outstanding;
            wanted = outstanding;
        } else {
            wanted = 0;
            for (int i = 0; i < count; i++) {
                int id = in[i][0] << 8 | in[i][1];
                struct flight *flight = flights + id;
                if (received[i].msg_len < 12 || !flight->query) { wrong++; continue; }
                if (!is_right(flight->query, in[i], received[i].msg_len)) wrong++;
                else if (answered < SAMPLES) latencies[answered++] = time - flight->sent_at;
                flight->query = NULL;
                wanted++;
            }
        }
        if (time >= end) break;
    }
    qsort(latencies, answered, sizeof *latencies, compare);
    printf("%ld %ld %ld %.6f %.2f %.2f %.2f\n", answered, lost, wrong, time - start, answered ? latencies[answered / 2] * 1e6 : 0,
           answered ? latencies[answered * 99 / 100] * 1e6 : 0, answered ? latencies[answered - 1] * 1e6 : 0);
    return 0;
}
