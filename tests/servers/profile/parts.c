// A server whose start-up has parts of known length, for `warmimg profile`.
//
// parts PORT PEER FOLDER: listens on PORT when it has been through all of them; PEER is the port of
// somebody who answers late, FOLDER has the files 0 to 99.
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void rest(int milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

// As virtual machines sleep: until a time, or a word that nobody says.
static void doze(int milliseconds) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += milliseconds * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&mutex);
    while (pthread_cond_timedwait(&never, &mutex, &until) == 0) continue;
    pthread_mutex_unlock(&mutex);
}

static double cpu(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static volatile unsigned long sink;

// Most of it is not in the kernel's clock.
#define WORK \
    double end = cpu() + milliseconds; \
    do { \
        for (int i = 0; i < 200000; i++) sink = sink * 31 + i; \
    } while (cpu() < end)

__attribute__((noinline)) void first_function(int milliseconds) { WORK; }
__attribute__((noinline)) void second_function(int milliseconds) { WORK; }

static struct sockaddr_in at(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int taken[2];

static void *holder(void *unused) {
    pthread_mutex_lock(&mutex);
    write(taken[1], "x", 1);
    rest(80);
    pthread_mutex_unlock(&mutex);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    first_function(200);
    second_function(100);
    rest(150);
    doze(50);

    char path[4096], data[65536];
    for (int i = 0; i < 100; i++) {
        snprintf(path, sizeof path, "%s/%d", argv[3], i);
        int file = open(path, O_RDONLY);
        if (file < 0 || read(file, data, sizeof data) <= 0) return 3;
        close(file);
    }
    for (int i = 0; i < 1000; i++) {
        snprintf(path, sizeof path, "%s/missing-%d", argv[3], i);
        if (open(path, O_RDONLY) >= 0) return 4;
    }

    struct sockaddr_in peer = at(argv[2]);
    int stream = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(stream, (struct sockaddr *)&peer, sizeof peer)) return 5;
    if (read(stream, data, 1) != 1) return 6;
    close(stream);

    pthread_t thread;
    if (pipe(taken)) return 7;
    pthread_create(&thread, NULL, holder, NULL);
    read(taken[0], data, 1);
    pthread_mutex_lock(&mutex);
    pthread_mutex_unlock(&mutex);
    pthread_join(thread, NULL);

    pid_t child = fork();
    if (child == 0) {
        rest(150);
        _exit(0);
    }
    waitpid(child, NULL, 0);

    struct sockaddr_in own = at(argv[1]);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 16)) return 8;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) return 9;
        const char *answer = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
        read(client, data, sizeof data);
        write(client, answer, strlen(answer));
        close(client);
    }
}
