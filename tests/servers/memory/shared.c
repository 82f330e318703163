/* A server whose two processes share memory that no file stands behind, partly filled before it listens.
 *
 *   shared PORT
 *
 *   GET /   both look whether all of it is as it was filled, and each counts in it: tells what the
 *           counter was before and is after, of all copies of the server in this one alone */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGES 3000
#define PAGE 4096

/* The counter is in the last page; what was never written to is zeros. */
static unsigned char *shared;
/* The second half once more, for reading only. */
static const unsigned char *behind;

_Noreturn static void fail(const char *what) {
    perror(what);
    exit(1);
}

static unsigned expected(long page) {
    return page % 7 < 3 ? (unsigned)(page * 2654435761u) : 0;
}

static const char *look(void) {
    for (long page = 0; page < PAGES - 1; page++)
        for (long at = page * PAGE; at < (page + 1) * PAGE; at += 512)
            if (*(unsigned *)(shared + at) != expected(page))
                return "WRONG";
    return memcmp(shared + PAGES / 2 * PAGE, behind, PAGES / 2 * PAGE) == 0 ? "whole" : "WRONG";
}

static int *counter(void) { return (int *)(shared + (PAGES - 1) * PAGE); }

static void *map(long pages, int protection) {
    void *at = mmap(NULL, pages * PAGE, protection, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    return at;
}

int main(int count, char **words) {
    int on = 1, ask[2], answer[2];
    char seen[16] = "", text[256];
    if (count != 2)
        return 2;
    shared = map(PAGES, PROT_READ | PROT_WRITE);
    for (long page = 0; page < PAGES - 1; page++)
        if (expected(page))
            for (long at = page * PAGE; at < (page + 1) * PAGE; at += 512)
                *(unsigned *)(shared + at) = expected(page);
    void *moved = map(PAGES / 2, PROT_NONE);
    /* The same pages at another place: an old size of 0 leaves the first mapping. */
    moved = mremap(shared + PAGES / 2 * PAGE, 0, PAGES / 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved);
    if (moved == MAP_FAILED || mprotect(moved, PAGES / 2 * PAGE, PROT_READ) < 0)
        fail("mremap");
    behind = moved;
    if (pipe(ask) < 0 || pipe(answer) < 0)
        fail("pipe");
    switch (fork()) {
    case -1:
        fail("fork");
    case 0:
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (read(ask[0], text, 1) == 1) {
            ++*counter();
            const char *state = look();
            if (write(answer[1], state, strlen(state)) < 0)
                return 1;
        }
        return 0;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)atoi(words[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(listener, (void *)&address, sizeof address) < 0 || listen(listener, 16) < 0)
        fail("listen");
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            fail("accept");
        if (read(client, text, sizeof text) > 0) {
            int before = (*counter())++;
            ssize_t len = 0;
            if (write(ask[1], "?", 1) != 1 || (len = read(answer[0], seen, sizeof seen - 1)) < 0)
                fail("ask");
            seen[len] = 0;
            len = snprintf(text, sizeof text,
                           "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s %s %d to %d\n", look(), seen,
                           before, *counter());
            if (write(client, text, (size_t)len) < 0)
                perror("write");
        }
        close(client);
    }
}
