/* Servers whose threads, children and timers are hard to capture; for what Python cannot do.
 *
 *   server KIND PORT
 *
 *   threads    200 threads, all of which are asked for each answer
 *   starting   threads that are started and end all the time
 *   spawning   programs that are started all the time, by posix_spawn
 *   vfork      a child in vfork, which executes a program half a second after the server is ready
 *   vforked    the server itself is a child in vfork, and never executes a program
 *   headless   the main thread has ended
 *   timers     POSIX timers: one that signals the process, one a thread, one to ring in an hour
 *
 * The answer is "ok" when what it is named after still does its work. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 200

/* What goes on happening. */
static atomic_int events;
static atomic_int signals[2];
static atomic_int in_vfork;
static timer_t far_timer;
static pthread_barrier_t asked, answered;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void pause_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

/* Whether a count grows within ten seconds. */
static int grows(atomic_int *count) {
    int before = atomic_load(count);
    for (int i = 0; i < 10000; i++) {
        if (atomic_load(count) != before)
            return 1;
        pause_ms(1);
    }
    return 0;
}

static void start(void *(*run)(void *)) {
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    if (pthread_create(&thread, &small, run, NULL) != 0)
        fail("pthread_create");
    pthread_detach(thread);
}

static void *take_part(void *unused) {
    for (;;) {
        pthread_barrier_wait(&asked);
        atomic_fetch_add(&events, 1);
        pthread_barrier_wait(&answered);
    }
    return unused;
}

static void *end_at_once(void *unused) {
    atomic_fetch_add(&events, 1);
    return unused;
}

static void *start_threads(void *unused) {
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, end_at_once, NULL) != 0)
            fail("pthread_create");
        pthread_join(thread, NULL);
    }
    return unused;
}

static void *spawn_programs(void *unused) {
    char *words[] = {"true", NULL}, *none[] = {NULL};
    for (;;) {
        pid_t child;
        int status;
        if (posix_spawn(&child, "/bin/true", NULL, NULL, words, none) != 0)
            fail("posix_spawn");
        if (waitpid(child, &status, 0) != child || status != 0)
            fail("waitpid");
        atomic_fetch_add(&events, 1);
    }
    return unused;
}

static void *wait_in_vfork(void *unused) {
    pid_t child = vfork();
    if (child == 0) {
        atomic_store(&in_vfork, 1);
        pause_ms(500);
        execl("/bin/sleep", "sleep", "1000", (char *)NULL);
        _exit(1);
    }
    for (;;) {
        atomic_fetch_add(&events, kill(child, 0) == 0);
        pause_ms(1);
    }
    return unused;
}

static void count_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    atomic_fetch_add(&signals[info->si_value.sival_int], 1);
}

static timer_t make_timer(int which, int notify, long first_ms, long interval_ms) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = SIGRTMIN + which};
    struct itimerspec times = {
        {interval_ms / 1000, interval_ms % 1000 * 1000000},
        {first_ms / 1000, first_ms % 1000 * 1000000},
    };
    timer_t timer;
    event.sigev_value.sival_int = which;
    event._sigev_un._tid = syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
        fail("timer_create");
    if (timer_settime(timer, 0, &times, NULL) < 0)
        fail("timer_settime");
    return timer;
}

static void make_timers(void) {
    struct sigaction action = {.sa_sigaction = count_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    /* One that is gone: those after it do not have the lowest numbers. */
    timer_t gone = make_timer(0, SIGEV_NONE, 1000, 0);
    sigaction(SIGRTMIN, &action, NULL);
    sigaction(SIGRTMIN + 1, &action, NULL);
    make_timer(0, SIGEV_SIGNAL, 1, 1);
    make_timer(1, SIGEV_THREAD_ID, 1, 1);
    far_timer = make_timer(0, SIGEV_NONE, 3600 * 1000, 0);
    timer_delete(gone);
}

/* Does what the kind is named after; NULL, or what is wrong. */
static const char *check(const char *kind) {
    if (!strcmp(kind, "threads")) {
        int before = atomic_load(&events);
        pthread_barrier_wait(&asked);
        pthread_barrier_wait(&answered);
        return atomic_load(&events) == before + THREADS ? NULL : "a thread is missing";
    }
    if (!strcmp(kind, "timers")) {
        struct itimerspec left;
        if (!grows(&signals[0]))
            return "no signal to the process";
        if (!grows(&signals[1]))
            return "no signal to the thread";
        if (timer_gettime(far_timer, &left) < 0)
            return "the timer to ring in an hour is gone";
        return left.it_value.tv_sec > 3000 ? NULL : "an hour has gone by";
    }
    if (!strcmp(kind, "none"))
        return NULL;
    return grows(&events) ? NULL : "nothing goes on";
}

static void serve(const char *kind, int port) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, 128) < 0)
        fail("listen");
    for (;;) {
        char request[4096], answer[256];
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        if (read(connection, request, sizeof request) > 0) {
            const char *trouble = check(kind);
            const char *text = trouble == NULL ? "ok" : trouble;
            int size = snprintf(answer, sizeof answer,
                                "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(text),
                                text);
            if (write(connection, answer, size) < 0)
                perror("write");
        }
        close(connection);
    }
}

static char **arguments;

static void *serve_alone(void *unused) {
    char path[64], state = 0;
    /* The main thread, as it ends, becomes a zombie. */
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", getpid());
    while (state != 'Z') {
        FILE *file = fopen(path, "r");
        if (file == NULL || fscanf(file, "%*d %*s %c", &state) != 1)
            fail(path);
        fclose(file);
    }
    serve("none", atoi(arguments[2]));
    return unused;
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    const char *kind = words[1];
    int port = atoi(words[2]);
    arguments = words;
    if (!strcmp(kind, "threads")) {
        pthread_barrier_init(&asked, NULL, THREADS + 1);
        pthread_barrier_init(&answered, NULL, THREADS + 1);
        for (int i = 0; i < THREADS; i++)
            start(take_part);
    } else if (!strcmp(kind, "starting")) {
        for (int i = 0; i < 4; i++)
            start(start_threads);
        grows(&events);
    } else if (!strcmp(kind, "spawning")) {
        start(spawn_programs);
        grows(&events);
    } else if (!strcmp(kind, "vfork")) {
        start(wait_in_vfork);
        while (!atomic_load(&in_vfork))
            pause_ms(1);
    } else if (!strcmp(kind, "vforked")) {
        if (vfork() == 0)
            serve("none", port);
    } else if (!strcmp(kind, "headless")) {
        start(serve_alone);
        pthread_exit(NULL);
    } else if (!strcmp(kind, "timers")) {
        make_timers();
    } else
        return 2;
    serve(kind, port);
}
