/* A server that looks at its memory from all sides: whether pages that were filled before it
 * listened behave as private anonymous memory does.
 *
 *   server PORT
 *
 *   GET /list   the names of all checks
 *   GET /NAME   does a check, once, on memory that nobody has used since; tells what it saw
 *
 * What is told is the same wherever memory is what it should be, and has no "WRONG" in it. Areas
 * have pages that cannot be accessed before and behind them, as many as they have themselves. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "areas.c"

#include "advice.c"
#include "mapping.c"
#include "processes.c"
#include "threads.c"

#define MAX_AREAS 8

/* A check with the areas it wants, and what else is done to them before the server listens. */
static struct check {
    const char *name;
    void (*run)(struct area *);
    int count;
    long pages;
    void (*prepare)(struct area *);
    struct area areas[MAX_AREAS];
    int done;
} checks[] = {
    /* First to run and last to be prepared, while nothing else is at the heap's end. */
    {"brk", break_heap, 0, 0, grow_heap},
    {"malloc-small", malloc_small, 0, 0, allocate},
    {"malloc-large", malloc_large},
    {"read", read_pages, 1, 128},
    {"resident", resident, 1, 128},
    {"holes", holes, 3, 128, leave_holes},
    {"dontneed-whole", dontneed_whole, 2, 128},
    {"dontneed-middle", dontneed_middle, 1, 128},
    {"dontneed-used", dontneed_used, 1, 128},
    {"dontneed-unaligned", dontneed_unaligned, 1, 128},
    {"dontneed-across", dontneed_across, 4, 128},
    {"dontneed-again", dontneed_again, 1, 128},
    {"dontneed-pieces", dontneed_pieces, 1, 4096},
    {"dontneed-blocks", dontneed_blocks, 1, 4096},
    {"dontneed-protected", dontneed_protected, 1, 128},
    {"dontneed-locked", dontneed_locked, 1, 128},
    {"lock", lock_pages, 2, 128},
    {"locked-before", locked_before, 1, 128, lock_before},
    {"free", free_lazily, 1, 128},
    {"remove", remove_pages, 1, 128},
    {"hints", hints, 1, 128},
    {"cold-and-out", cold_and_out, 1, 128},
    {"populate", populate, 2, 128},
    {"wipeonfork", wipe_on_fork, 2, 128},
    {"wiped-before", wiped_before, 1, 128, wipe_before},
    {"told-before", told_before, 1, 128, tell_half},
    {"dontfork", dont_fork, 1, 128},
    {"kept", kept, 2, 128},
    {"huge", huge, 1, 1024, align_huge},
    {"merge", merge, 1, 128},
    {"guard", guard_pages, 2, 128},
    {"process-madvise", of_process, 2, 128},
    {"name", name_pages, 1, 128},
    {"seal", seal, 1, 128},
    {"merged", merged, 2, 128, merge_pieces},
    {"protect", protections, 1, 128},
    {"execute", execute, 2, 128, write_code},
    {"forbidden", forbidden, 2, 128, forbid},
    {"grow-in-place", grow_in_place, 1, 128},
    {"grow-moving", grow_moving, 2, 128},
    {"grow-middle", grow_middle, 1, 128},
    {"move", move_whole, 1, 128},
    {"move-onto", move_onto, 2, 128},
    {"move-leaving", move_leaving, 2, 128},
    {"move-nothing", move_nothing, 1, 128},
    {"move-with-holes", move_with_holes, 3, 128, leave_holes},
    {"shrink-and-grow", shrink_and_grow, 1, 128},
    {"map-over", map_over, 1, 128},
    {"unmap-middle", unmap_middle, 1, 128},
    {"stack", deep_stack, 0, 0, use_stack},
    {"growing-down", growing_down, 1, 128, map_growing},
    {"fork-write", fork_and_write, 1, 128},
    {"fork-wait", fork_and_wait, 1, 128},
    {"fork-give-back", fork_and_give_back, 1, 128},
    {"fork-move", fork_and_move, 2, 128},
    {"vfork", vfork_and_give_back, 1, 128},
    {"program", execute_program, 1, 128},
    {"privileges", privileges, 1, 128},
    {"filter", filter, 1, 128},
    {"drop-user", drop_user, 1, 128},
    {"read-and-write", read_and_write, 2, 128},
    {"copy-by-pid", copy_by_pid, 2, 128},
    {"write-as-file", write_as_file, 2, 128},
    {"write-barrier", write_barrier, 1, 128},
    {"thread-stack", ask_thread, 0, 0, start_talking},
    {"thread-advises", ask_to_advise, 0, 0, start_advising},
    {"thread-end", end_thread, 0, 0, start_ending},
    {"counting-dontneed", counting_dontneed, 8, 128},
    {"counting-wipe", counting_wipe, 8, 128},
    {"counting-grow", counting_grow, 8, 128},
    {"counting-others", counting_others, 8, 128},
    {"counting-fork", counting_fork, 8, 128},
    {"watched", watched, 1, 512},
    {"threads", in_threads, 8, 128},
    {"signals", under_signals, 2, 1024},
    {"fire", under_fire, 2, 1024},
    {"wait", wait_for_memory, 1, 128},
    {"serve-faults", serve_faults, 2, 128},
};
#define CHECKS ((int)(sizeof checks / sizeof *checks))

static void prepare(void) {
    for (int i = CHECKS - 1; i >= 0; i--) {
        struct check *check = &checks[i];
        long step = 2 * check->pages;
        unsigned char *at = check->count > 0 ? reserve(step * check->count + check->pages) : NULL;
        for (int k = 0; k < check->count; k++) {
            unsigned char *start = at + (check->pages + step * k) * PAGE;
            check->areas[k] = (struct area){i * MAX_AREAS + k, start, check->pages};
            if (mprotect(start, check->pages * PAGE, PROT_READ | PROT_WRITE) < 0)
                fail("mprotect");
            fill(&check->areas[k], 0, check->pages, PATTERN);
        }
        if (check->prepare != NULL)
            check->prepare(check->areas);
    }
}

static int connection;

static void send_answer(void) {
    char head[] = "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n";
    struct iovec parts[] = {{head, sizeof head - 1}, {answer, answered}, {"\n", 1}};
    if (writev(connection, parts, 3) < 0)
        perror("writev");
    close(connection);
}

static void hang(int signal) {
    (void)signal;
    say("WRONG: hangs");
    send_answer();
    _exit(1);
}

static void do_check(struct check *check) {
    sigjmp_buf here;
    if (check == NULL || check->done)
        return say("WRONG: no such check, or done before");
    check->done = 1;
    caught = &here;
    if (sigsetjmp(here, 1) == 0)
        check->run(check->areas);
    else
        say("WRONG: faults");
    caught = NULL;
}

static struct check *find_check(const char *name) {
    for (int i = 0; i < CHECKS; i++)
        if (!strcmp(checks[i].name, name))
            return &checks[i];
    return NULL;
}

static void serve(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, 128) < 0)
        fail("listen");
    for (;;) {
        char request[4096] = "", name[64] = "";
        connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0)
            continue;
        answered = 0;
        if (read(connection, request, sizeof request - 1) > 0)
            sscanf(request, "GET /%63[^ ]", name);
        if (!strcmp(name, "list")) {
            for (int i = 0; i < CHECKS; i++)
                answered += sprintf(answer + answered, "%s ", checks[i].name);
        } else {
            alarm(9);
            do_check(find_check(name));
            alarm(0);
        }
        send_answer();
    }
}

int main(int count, char **words) {
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGBUS, &fault, NULL);
    signal(SIGALRM, hang);
    if (count != 2)
        return 2;
    if (!strcmp(words[1], "fresh")) {
        fresh();
        return write(1, answer, answered) != (ssize_t)answered;
    }
    /* So that they do not change as blocks are freed. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 128 << 10);
    prepare();
    serve(atoi(words[1]));
}
