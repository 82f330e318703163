/* Areas of memory with known contents, and the line that tells what has become of them. A page is
 * described by what is in it, never by its address, so that the line is the same in every run. */
#define PAGE 4096L
#define WORDS (PAGE / (long)sizeof(uint64_t))

struct area {
    uint64_t id;
    unsigned char *at;
    long pages;
};

/* What areas are filled with, before the capture and by a check. */
enum content { PATTERN = 0xA5, WRITTEN = 0x5A };

/* The answer, in parts. */
static char answer[4096];
static size_t answered;

/* Where a fault of this thread goes on. */
static __thread sigjmp_buf *volatile caught;
/* Read-only memory of which a page is made writable when it is written to. */
static struct area barrier;
static atomic_int barrier_hits;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void say(const char *format, ...) {
    va_list list;
    size_t room = sizeof answer - answered;
    int length;
    if (answered > 0)
        answered += snprintf(answer + answered, room, "; ");
    room = sizeof answer - answered;
    va_start(list, format);
    length = vsnprintf(answer + answered, room, format, list);
    va_end(list);
    answered += (size_t)length < room ? (size_t)length : room - 1;
}

static void must(int holds, const char *what) {
    say(holds ? "%s" : "WRONG: not %s", what);
}

/* The result of a system call in a word. */
static const char *outcome(long result) {
    return result < 0 ? strerrorname_np(errno) : "ok";
}

static unsigned char *page(const struct area *a, long n) { return a->at + n * PAGE; }

/* Pages of an area as one of its own, in which its pattern is known no more. */
static struct area part(const struct area *a, long from, long to) {
    return (struct area){a->id + 1000, page(a, from), to - from};
}

static uint64_t word(const struct area *a, enum content content, long n, long i) {
    return (uint64_t)content << 56 | a->id << 40 | (uint64_t)n << 16 | (uint64_t)i;
}

static void fill(const struct area *a, long from, long to, enum content content) {
    for (long n = from; n < to; n++) {
        volatile uint64_t *words = (void *)page(a, n);
        for (long i = 0; i < WORDS; i++)
            words[i] = word(a, content, n, i);
    }
}

/* Looks at pages as a program that uses them does: reads every third, writes to every fourth. */
static void use(const struct area *a, long from, long to) {
    for (long n = from; n < to; n++) {
        if (n % 3 == 0)
            (void)*(volatile unsigned char *)page(a, n);
        if (n % 4 == 0)
            *(volatile uint64_t *)page(a, n) = word(a, PATTERN, n, 0);
    }
}

/* The signal that an access brings, or 0. */
static int access_signal(unsigned char *at, int writes) {
    sigjmp_buf here, *before = caught;
    volatile unsigned char *byte = at;
    int signal = sigsetjmp(here, 0);
    if (signal == 0) {
        caught = &here;
        unsigned char value = *byte;
        if (writes)
            *byte = value;
    }
    caught = before;
    return signal;
}

static const char *can_write(const struct area *a, long n) {
    return access_signal(page(a, n), 1) == 0 ? "writable" : "not writable";
}

static const char *class(const struct area *a, long n) {
    const volatile uint64_t *words = (void *)page(a, n);
    long patterns = 0, written = 0, zeros = 0;
    switch (access_signal(page(a, n), 0)) {
    case 0:
        break;
    case SIGSEGV:
        return "no access";
    default:
        return "WRONG: another signal";
    }
    for (long i = 0; i < WORDS; i++) {
        uint64_t value = words[i];
        patterns += value == word(a, PATTERN, n, i);
        written += value == word(a, WRITTEN, n, i);
        zeros += value == 0;
    }
    return patterns == WORDS  ? "pattern"
           : written == WORDS ? "written"
           : zeros == WORDS   ? "zeros"
                              : "WRONG: mixed";
}

/* Tells what pages hold, those that hold the same together. */
static void show_part(const struct area *a, long from, long to) {
    char text[2048];
    size_t used = 0;
    for (long n = from, first = from; n < to; n++) {
        const char *this = class(a, n);
        if (n + 1 < to && !strcmp(this, class(a, n + 1)))
            continue;
        used += snprintf(text + used, sizeof text - used, "%s%ld..%ld %s", used > 0 ? ", " : "",
                         first, n + 1, this);
        first = n + 1;
        if (used > sizeof text - 100) {
            strcpy(text + used, ", WRONG: and so on");
            break;
        }
    }
    say("%s", text);
}

static void show(const struct area *a) { show_part(a, 0, a->pages); }

/* Whether every page that step and first choose holds this. */
static int all(const struct area *a, long first, long step, const char *wanted) {
    for (long n = first; n < a->pages; n += step)
        if (strcmp(class(a, n), wanted) != 0)
            return 0;
    return 1;
}

/* How many pages are in memory. */
static void show_resident(const struct area *a, long from, long to) {
    unsigned char state[8192];
    long resident = 0;
    if (to - from > (long)sizeof state || mincore(page(a, from), (to - from) * PAGE, state) < 0)
        return say("mincore: %s", outcome(-1));
    for (long n = 0; n < to - from; n++)
        resident += state[n] & 1;
    say("%ld of %ld..%ld in memory", resident, from, to);
}

/* How many pages the process has in memory. */
static long resident_pages(void) {
    char text[2048] = "", *line;
    int file = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, text, sizeof text - 1) < 0)
        return -1;
    close(file);
    line = strstr(text, "Rss:");
    return line == NULL ? -1 : atol(line + 4) * 1024 / PAGE;
}

/* Unmaps the room behind an area, so that it can grow. */
static void make_room(const struct area *a) { munmap(page(a, a->pages), a->pages * PAGE); }

/* Pages that cannot be accessed, as a place to move to. */
static unsigned char *reserve(long pages) {
    void *at = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        fail("mmap");
    return at;
}

/* A child ends before the check is found to hang, which tells where it hangs. */
static void limit_child(void) {
    signal(SIGALRM, SIG_DFL);
    alarm(7);
}

/* Runs something in a child, and tells what it said. */
static void in_child(void (*run)(struct area *), struct area *a) {
    char text[2048];
    size_t used = 0;
    ssize_t length;
    int ends[2], status;
    pid_t child;
    if (pipe(ends) < 0 || (child = fork()) < 0)
        fail("fork");
    if (child == 0) {
        caught = NULL;
        answered = 0;
        limit_child();
        run(a);
        _exit(write(ends[1], answer, answered) != (ssize_t)answered);
    }
    close(ends[1]);
    while ((length = read(ends[0], text + used, sizeof text - used)) > 0)
        used += length;
    close(ends[0]);
    if (waitpid(child, &status, 0) != child || status != 0)
        say("WRONG: the child ended with %#x", status);
    say("child {%.*s}", (int)used, text);
}

static void show_in_child(struct area *a) { in_child((void (*)(struct area *))show, a); }

static pthread_t start(void *(*run)(void *), void *argument, size_t stack) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack);
    if (pthread_create(&thread, &attributes, run, argument) != 0)
        fail("pthread_create");
    return thread;
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    unsigned char *at = info->si_addr;
    (void)context;
    if (at >= barrier.at && at < page(&barrier, barrier.pages)) {
        unsigned char *start = barrier.at + (at - barrier.at) / PAGE * PAGE;
        atomic_fetch_add(&barrier_hits, 1);
        if (mprotect(start, PAGE, PROT_READ | PROT_WRITE) == 0)
            return;
    }
    if (caught != NULL)
        siglongjmp(*caught, signal);
    _exit(3);
}
