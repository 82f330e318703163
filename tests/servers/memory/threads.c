/* What is done by one thread while others use the memory, and under signals. */

/* A captured thread, with an area on its stack. */
struct stack {
    sem_t ready, asked;
    pthread_t thread;
    struct area area;
};
static struct stack talking = {.area = {.id = 1000, .pages = 100}};
static struct stack ending = {.area = {.id = 1001, .pages = 200}};
static struct stack advising = {.area = {.id = 1002, .pages = 100}};

static void *talk(void *argument) {
    struct stack *stack = argument;
    unsigned char frame[100 * PAGE] __attribute__((aligned(64)));
    stack->area.at = frame;
    fill(&stack->area, 0, 100, PATTERN);
    for (;;) {
        sem_post(&stack->ready);
        while (sem_wait(&stack->asked) < 0) {
        }
        show(&stack->area);
        fill(&stack->area, 40, 60, WRITTEN);
        must(recurse(200), "well");
        show(&stack->area);
    }
    return NULL;
}

static __attribute__((noinline)) void leave_below(struct stack *stack) {
    unsigned char frame[300 * PAGE] __attribute__((aligned(4096)));
    stack->area.at = frame;
    fill(&stack->area, 0, 200, PATTERN);
}

static void *end(void *argument) {
    struct stack *stack = argument;
    leave_below(stack);
    sem_post(&stack->ready);
    while (sem_wait(&stack->asked) < 0) {
    }
    return NULL;
}

/* The stack has the C library's data of the thread, too, where the kernel writes when it goes on. */
static void *advise_own(void *argument) {
    struct stack *stack = argument;
    unsigned char frame[100 * PAGE] __attribute__((aligned(4096)));
    pthread_attr_t attributes;
    void *at;
    size_t size;
    stack->area.at = frame;
    fill(&stack->area, 0, 100, PATTERN);
    if (pthread_getattr_np(pthread_self(), &attributes) != 0 ||
        pthread_attr_getstack(&attributes, &at, &size) != 0)
        fail("pthread_getattr_np");
    sem_post(&stack->ready);
    while (sem_wait(&stack->asked) < 0) {
    }
    say("MADV_DONTDUMP %s", outcome(madvise(at, size, MADV_DONTDUMP)));
    show(&stack->area);
    must(recurse(200), "well");
    sem_post(&stack->ready);
    return NULL;
}

static void start_stack(struct stack *stack, void *(*run)(void *), size_t size) {
    sem_init(&stack->ready, 0, 0);
    sem_init(&stack->asked, 0, 0);
    stack->thread = start(run, stack, size);
    while (sem_wait(&stack->ready) < 0) {
    }
}

static void start_talking(struct area *unused) {
    (void)unused;
    start_stack(&talking, talk, 4 << 20);
}

static void start_ending(struct area *unused) {
    (void)unused;
    start_stack(&ending, end, 3 << 20);
}

static void start_advising(struct area *unused) {
    (void)unused;
    start_stack(&advising, advise_own, 4 << 20);
}

static void ask_to_advise(struct area *unused) {
    (void)unused;
    sem_post(&advising.asked);
    while (sem_wait(&advising.ready) < 0) {
    }
}

static void ask_thread(struct area *unused) {
    (void)unused;
    sem_post(&talking.asked);
    while (sem_wait(&talking.ready) < 0) {
    }
}

static void *look_below(void *argument) {
    struct stack *stack = argument;
    unsigned char here;
    must(&here > stack->area.at && &here - stack->area.at < 3 << 20, "the same stack");
    show(&stack->area);
    must(recurse(400), "well");
    return NULL;
}

/* The C library gives the stack of a thread that has ended back, and uses it again. */
static void end_thread(struct area *unused) {
    (void)unused;
    sem_post(&ending.asked);
    pthread_join(ending.thread, NULL);
    pthread_join(start(look_below, &ending, 3 << 20), NULL);
    for (int i = 0; i < 50; i++) {
        sem_post(&ending.asked);
        pthread_join(start(end, &ending, 3 << 20), NULL);
    }
    pthread_join(start(look_below, &ending, 3 << 20), NULL);
}

/* A thread that counts in words of some pages of areas, and notices when a count is not what it
 * has written: of the pages n with n % 4 == first. */
struct counter {
    struct area *areas;
    long first;
    atomic_int count, rounds, stop;
    long lost;
    uint64_t expected[8][128][2];
};

static void *count_up(void *argument) {
    struct counter *counter = argument;
    while (!atomic_load(&counter->stop)) {
        int count = atomic_load(&counter->count);
        for (int k = 0; k < count; k++)
            for (long n = counter->first; n < 128; n += 4)
                for (int i = 0; i < 2; i++) {
                    volatile uint64_t *words = (void *)page(&counter->areas[k], n);
                    uint64_t *expected = &counter->expected[k][n][i];
                    counter->lost += words[100 + i * 300] != *expected;
                    *expected += 1;
                    words[100 + i * 300] += 1;
                }
        atomic_fetch_add(&counter->rounds, 1);
    }
    return NULL;
}

static void start_counter(struct counter *counter, struct area *areas, long first) {
    *counter = (struct counter){.areas = areas, .first = first};
    for (int k = 0; k < 8; k++)
        for (long n = 0; n < 128; n++)
            for (int i = 0; i < 2; i++)
                counter->expected[k][n][i] = word(&areas[k], PATTERN, n, 100 + i * 300);
}

static void wait_rounds(struct counter *counter) {
    int before = atomic_load(&counter->rounds);
    while (atomic_load(&counter->rounds) - before < 2)
        sched_yield();
}

/* Does something to eight areas while a thread counts in all of them, and another begins to in
 * each as it is done. Pages 1, 5, 9 and so on are not touched, 3, 7, 11 by what is done alone. */
static void while_counting(struct area *a, int (*run)(struct area *)) {
    static struct counter always, later;
    pthread_t threads[2];
    int good = 1;
    start_counter(&always, a, 0);
    start_counter(&later, a, 2);
    atomic_store(&always.count, 8);
    threads[0] = start(count_up, &always, 1 << 18);
    threads[1] = start(count_up, &later, 1 << 18);
    wait_rounds(&always);
    for (int k = 0; k < 8; k++) {
        atomic_store(&later.count, k + 1);
        good = good && run(&a[k]);
        wait_rounds(&later);
    }
    atomic_store(&always.stop, 1);
    atomic_store(&later.stop, 1);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    must(good, "ok each time");
    for (int k = 0; k < 8; k++) {
        good = good && all(&a[k], 1, 4, "pattern");
        for (long n = 0; n < 128; n += 2)
            for (int i = 0; i < 2; i++) {
                uint64_t *expected = (n % 4 == 0 ? &always : &later)->expected[k][n];
                uint64_t *words = (void *)page(&a[k], n);
                good = good && words[100 + i * 300] == expected[i];
            }
    }
    must(good, "all as it was counted to");
    must(always.lost + later.lost == 0, "every count kept");
}

static int count_dontneed(struct area *a) {
    int good = 1;
    for (long n = 3; n < 128; n += 4)
        good = good && madvise(page(a, n), PAGE, MADV_DONTNEED) == 0;
    return good && all(a, 3, 4, "zeros");
}

static int count_wipe(struct area *a) {
    return madvise(a->at, 128 * PAGE, MADV_WIPEONFORK) == 0 && all(a, 3, 4, "pattern");
}

static int count_grow(struct area *a) {
    make_room(a);
    return mremap(a->at, 128 * PAGE, 256 * PAGE, 0) == a->at && all(a, 3, 4, "pattern") &&
           !strcmp(class(a, 128), "zeros") && !strcmp(class(a, 255), "zeros");
}

static int count_others(struct area *a) {
    return madvise(a->at, 128 * PAGE, MADV_PAGEOUT) == 0 && mlock(a->at, 64 * PAGE) == 0 &&
           mprotect(a->at, 128 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0 &&
           madvise(a->at, 128 * PAGE, MADV_DONTFORK) == 0 && all(a, 3, 4, "pattern");
}

static int count_fork(struct area *a) {
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(madvise(a->at, 128 * PAGE, MADV_DONTNEED) != 0 || !all(a, 0, 1, "zeros"));
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 &&
           all(a, 3, 4, "pattern");
}

static void counting_dontneed(struct area *a) { while_counting(a, count_dontneed); }
static void counting_wipe(struct area *a) { while_counting(a, count_wipe); }
static void counting_grow(struct area *a) { while_counting(a, count_grow); }
static void counting_others(struct area *a) { while_counting(a, count_others); }
static void counting_fork(struct area *a) { while_counting(a, count_fork); }

/* A thread that sees the very pages go: a page that was zeros stays so. */
struct watch {
    struct area *area;
    atomic_int stop, rounds;
    int wrong;
};

static void *watch_pages(void *argument) {
    struct watch *watch = argument;
    char gone[512] = "";
    while (!atomic_load(&watch->stop)) {
        for (long n = 0; n < watch->area->pages; n++) {
            uint64_t value = *(volatile uint64_t *)page(watch->area, n);
            if (value != 0)
                watch->wrong += gone[n] || value != word(watch->area, PATTERN, n, 0);
            gone[n] = value == 0;
        }
        atomic_fetch_add(&watch->rounds, 1);
    }
    return NULL;
}

static void watched(struct area *a) {
    struct watch watch = {.area = a};
    pthread_t thread = start(watch_pages, &watch, 1 << 18);
    int good = 1;
    for (long n = 0; n < a->pages; n += 16) {
        int before = atomic_load(&watch.rounds);
        good = good && madvise(page(a, n), 12 * PAGE, MADV_DONTNEED) == 0;
        while (atomic_load(&watch.rounds) == before)
            sched_yield();
    }
    good = good && madvise(a->at, a->pages * PAGE, MADV_DONTNEED) == 0;
    atomic_store(&watch.stop, 1);
    pthread_join(thread, NULL);
    must(good, "ok each time");
    must(watch.wrong == 0, "zeros for good");
    show(a);
}

static void *take_back(void *argument) {
    struct area *a = argument;
    intptr_t good = 1;
    for (int round = 0; round < 2; round++)
        for (long n = 0; n < 128; n += 4) {
            good = good && madvise(page(a, n), 4 * PAGE, MADV_DONTNEED) == 0;
            for (long i = n; i < n + 4; i++)
                good = good && !strcmp(class(a, i), "zeros");
            fill(a, n, n + 4, WRITTEN);
            for (long i = 0; i < n + 4; i++)
                good = good && !strcmp(class(a, i), "written");
            if (round == 0)
                for (long i = n + 4; i < 128; i++)
                    good = good && !strcmp(class(a, i), "pattern");
        }
    return (void *)good;
}

static void in_threads(struct area *a) {
    pthread_t threads[8];
    int good = 1;
    for (int k = 0; k < 8; k++)
        threads[k] = start(take_back, &a[k], 1 << 18);
    for (int k = 0; k < 8; k++) {
        void *result;
        pthread_join(threads[k], &result);
        good = good && result != NULL;
    }
    must(good, "zeros and written in turn");
    for (int k = 0; k < 8; k++)
        must(all(&a[k], 0, 1, "written"), "written");
}

static atomic_int rings;

static void ring(int signal) {
    (void)signal;
    atomic_fetch_add(&rings, 1);
}

/* An interval timer whose handler wants no system call to begin anew. */
static void under_signals(struct area *a) {
    struct sigaction action = {.sa_handler = ring};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    timer_t timer;
    int good = 1, round = 0;
    atomic_store(&rings, 0);
    sigaction(SIGRTMIN, &action, NULL);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) < 0)
        fail("timer_create");
    timer_settime(timer, 0, &often, NULL);
    for (; good && (round < 2 || atomic_load(&rings) < 100); round++) {
        for (long n = 0; n < 1024; n += 2) {
            good = good && madvise(page(a, n), PAGE, MADV_DONTNEED) == 0;
            good = good && !strcmp(class(a, n), "zeros");
        }
        for (long n = 0; n < 1024; n += 64) {
            int advice = round % 2 == 0 ? MADV_WIPEONFORK : MADV_KEEPONFORK;
            good = good && madvise(page(a + 1, n), 32 * PAGE, advice) == 0;
        }
        fill(a, 0, 1024, WRITTEN);
    }
    if (!good)
        say("WRONG: %s", outcome(-1));
    timer_delete(timer);
    signal(SIGRTMIN, SIG_IGN);
    show(a);
    show(a + 1);
}

/* Whether a thread asks for signals, and which. */
struct target {
    pid_t thread;
    atomic_int stop;
};

static void ring_with_info(int signal, siginfo_t *info, void *context) {
    (void)info, (void)context;
    ring(signal);
}

/* Sends one signal after the other as soon as the one before has been taken, some two at once. */
static void *fire(void *argument) {
    struct target *target = argument;
    int sent = atomic_load(&rings);
    for (int round = 0; !atomic_load(&target->stop); round++) {
        for (int n = 0; n <= round % 2; n++, sent++)
            syscall(SYS_tgkill, getpid(), target->thread, SIGRTMIN + (round + n) % 3);
        while (atomic_load(&rings) < sent && !atomic_load(&target->stop)) {
        }
        /* What is interrupted has to get on at times. */
        for (int pause = round % 64 * 100; pause > 0; pause--)
            atomic_load(&target->stop);
    }
    return NULL;
}

/* Signals without end, for half a second, whose handlers want no system call to begin anew; one of
 * them has a stack of its own. */
static void under_fire(struct area *a) {
    static unsigned char stack[64 * PAGE];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, before;
    struct sigaction action = {.sa_handler = ring};
    struct target target = {.thread = syscall(SYS_gettid)};
    struct timespec begin, now;
    pthread_t thread;
    int good = 1;
    sigaltstack(&alternate, &before);
    sigaction(SIGRTMIN, &action, NULL);
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    action.sa_sigaction = ring_with_info;
    sigaction(SIGRTMIN + 1, &action, NULL);
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGRTMIN + 2, &action, NULL);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    thread = start(fire, &target, 1 << 18);
    for (long n = 0; n < a->pages; n += 2) {
        good = good && madvise(page(a, n), PAGE, MADV_DONTNEED) == 0;
        good = good && !strcmp(class(a, n), "zeros") && !strcmp(class(a, n + 1), "pattern");
        if (n % 32 == 0)
            good = good && madvise(page(a + 1, n), 16 * PAGE, MADV_WIPEONFORK) == 0;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec * 1000 + now.tv_nsec / 1000000 >
            begin.tv_sec * 1000 + begin.tv_nsec / 1000000 + 500)
            atomic_store(&target.stop, 1);
    }
    if (!good)
        say("WRONG: %s", outcome(-1));
    atomic_store(&target.stop, 1);
    pthread_join(thread, NULL);
    for (int n = 0; n < 3; n++)
        signal(SIGRTMIN + n, SIG_IGN);
    sigaltstack(&before, NULL);
    fill(a, 0, a->pages, WRITTEN);
    show(a);
    show(a + 1);
}

static void *wait_for_word(void *argument) {
    volatile int *at = argument;
    while (*at == 1)
        syscall(SYS_futex, at, FUTEX_WAIT, 1, NULL, NULL, 0);
    return NULL;
}

/* Waiting for a word, by an operation that looks at what the memory is. */
static void wait_for_memory(struct area *a) {
    int *word = (int *)page(a, 50), woken = 0;
    pthread_t thread;
    for (int round = 0; round < 2; round++) {
        *(volatile int *)word = 1;
        thread = start(wait_for_word, word, 1 << 18);
        while ((woken = syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0)) == 0)
            sched_yield();
        *(volatile int *)word = 2;
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
        pthread_join(thread, NULL);
        say("%d woken", woken);
        ADVISE(a, 50, 51, MADV_DONTNEED);
    }
    show(a);
}

static void *read_page(void *argument) {
    struct area *a = argument;
    return (void *)class(a, 20);
}

/* Page faults that the program itself serves. */
static void serve_faults(struct area *a) {
    int file = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {
        {(uintptr_t)a->at, 128 * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    struct uffdio_copy copy = {.dst = (uintptr_t)page(a, 20), .len = PAGE};
    struct uffd_msg message;
    struct area source = a[1];
    pthread_t thread;
    void *seen;
    say("userfaultfd %s", outcome(file));
    if (file < 0 || ioctl(file, UFFDIO_API, &api) < 0)
        return;
    say("register %s", outcome(ioctl(file, UFFDIO_REGISTER, &range)));
    show(a);
    ADVISE(a, 20, 21, MADV_DONTNEED);
    if (range.ioctls == 0)
        return;
    thread = start(read_page, a, 1 << 18);
    must(read(file, &message, sizeof message) == sizeof message &&
             message.event == UFFD_EVENT_PAGEFAULT && message.arg.pagefault.address / PAGE * PAGE ==
                                                          (uintptr_t)page(a, 20),
         "asked for the page");
    source = moved(a, source.at, 20);
    fill(&source, 20, 21, WRITTEN);
    copy.src = (uintptr_t)page(&source, 20);
    say("copy %s", outcome(ioctl(file, UFFDIO_COPY, &copy)));
    pthread_join(thread, &seen);
    say("%s", (const char *)seen);
    close(file);
    show(a);
}
