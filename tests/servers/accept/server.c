/* The smallest server: one process, one accept loop. It starts as fast as a process can, and
 * takes as much longer as it is told:
 *
 *   server PORT [busy=MS] [sleep=MS] [read=FILE] [touch=MIB] [report=FILE] [answer=MS] [work=MS]
 *          [grow=MIB] [exit=FILE]
 *
 * Before it listens it keeps the processor busy, sleeps, reads a file and touches memory; then it
 * adds a line to the report: nanoseconds since its start, nanoseconds of CPU time. Each answer
 * takes it `answer` milliseconds, and `work` milliseconds of CPU time, and leaves it with `grow` MiB
 * more of memory. If the file `exit` is there at its start, it ends at once. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void pause_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void work_ms(long ms) {
    long long end = now(CLOCK_PROCESS_CPUTIME_ID) + ms * 1000000LL;
    while (now(CLOCK_PROCESS_CPUTIME_ID) < end) {
    }
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void read_file(const char *path) {
    static char bytes[1 << 20];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        fail(path);
    while (read(fd, bytes, sizeof bytes) > 0) {
    }
    close(fd);
}

static void touch(long mib) {
    size_t size = (size_t)mib << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    /* Huge pages would make the number of page faults a matter of luck. */
    madvise(memory, size, MADV_NOHUGEPAGE);
    for (size_t place = 0; place < size; place += 4096)
        memory[place] = 1;
}

int main(int count, char **words) {
    long long begun = now(CLOCK_MONOTONIC);
    const char *report = NULL;
    long answer = 0, work = 0, grow = 0;
    if (count < 2)
        return 2;
    for (int i = 2; i < count; i++) {
        char *value = strchr(words[i], '=');
        if (value == NULL)
            return 2;
        *value++ = 0;
        if (!strcmp(words[i], "busy")) {
            long long end = now(CLOCK_MONOTONIC) + atol(value) * 1000000LL;
            while (now(CLOCK_MONOTONIC) < end) {
            }
        } else if (!strcmp(words[i], "sleep"))
            pause_ms(atol(value));
        else if (!strcmp(words[i], "read"))
            read_file(value);
        else if (!strcmp(words[i], "touch"))
            touch(atol(value));
        else if (!strcmp(words[i], "report"))
            report = value;
        else if (!strcmp(words[i], "answer"))
            answer = atol(value);
        else if (!strcmp(words[i], "work"))
            work = atol(value);
        else if (!strcmp(words[i], "grow"))
            grow = atol(value);
        else if (!strcmp(words[i], "exit")) {
            if (access(value, F_OK) == 0) {
                fprintf(stderr, "found %s\n", value);
                return 3;
            }
        } else
            return 2;
    }

    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (report != NULL) {
        FILE *file = fopen(report, "a");
        if (file == NULL)
            fail(report);
        fprintf(file, "%lld %lld\n", now(CLOCK_MONOTONIC) - begun, now(CLOCK_PROCESS_CPUTIME_ID));
        fclose(file);
    }
    if (listen(listener, 128) < 0)
        fail("listen");
    for (;;) {
        static const char response[] = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nHello\n";
        char request[4096];
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        if (read(connection, request, sizeof request) > 0) {
            pause_ms(answer);
            work_ms(work);
            if (grow > 0)
                touch(grow);
            if (write(connection, response, sizeof response - 1) < 0)
                perror("write");
        }
        close(connection);
    }
}
