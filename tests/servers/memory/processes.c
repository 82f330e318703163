/* What other processes and the kernel do with an area. */

static void write_and_show(struct area *a) {
    fill(a, 10, 20, WRITTEN);
    show(a);
}

static void fork_twice(struct area *a) {
    in_child(write_and_show, a);
    fill(a, 15, 40, WRITTEN);
    show(a);
}

static void fork_and_write(struct area *a) {
    in_child(write_and_show, a);
    show(a);
    in_child(fork_twice, a);
    show(a);
    fill(a, 100, 110, WRITTEN);
    show_in_child(a);
}

/* The parent writes while the child looks. */
static void fork_and_wait(struct area *a) {
    int ends[2];
    char byte = 0;
    pid_t child;
    int status;
    if (pipe(ends) < 0 || (child = fork()) < 0)
        fail("fork");
    if (child == 0) {
        limit_child();
        _exit(read(ends[0], &byte, 1) != 1 || !all(a, 0, 1, "pattern"));
    }
    fill(a, 0, 64, WRITTEN);
    ADVISE(a, 50, 100, MADV_DONTNEED);
    must(write(ends[1], &byte, 1) == 1 && waitpid(child, &status, 0) == child && status == 0,
         "pattern in the child");
    close(ends[0]);
    close(ends[1]);
    show(a);
}

static void give_back(struct area *a) {
    ADVISE(a, 30, 60, MADV_DONTNEED);
    ADVISE(a, 80, 100, MADV_WIPEONFORK);
    fill(a, 50, 55, WRITTEN);
    show(a);
    show_in_child(a);
}

static void fork_and_give_back(struct area *a) {
    in_child(give_back, a);
    show(a);
    ADVISE(a, 10, 40, MADV_DONTNEED);
    in_child(give_back, a);
    show(a);
}

static void fork_and_move(struct area *a) {
    in_child(grow_moving, a);
    show(a);
    show(a + 1);
    in_child(shrink_and_grow, a);
    grow_moving(a);
}

static void vfork_and_give_back(struct area *a) {
    int status;
    pid_t child = vfork();
    if (child == 0)
        _exit(madvise(page(a, 40), 20 * PAGE, MADV_DONTNEED) != 0);
    must(waitpid(child, &status, 0) == child && status == 0, "well");
    show(a);
    ADVISE(a, 50, 70, MADV_DONTNEED);
    show(a);
}

/* What a program does that a child executes: all on memory of its own. */
static void fresh(void) {
    struct area a = {1, reserve(1000), 128};
    mprotect(a.at, 128 * PAGE, PROT_READ | PROT_WRITE);
    fill(&a, 0, 128, PATTERN);
    resize(&a, 200, MREMAP_MAYMOVE);
    give_back(&a);
}

static pid_t start_program(int output) {
    pid_t child = vfork();
    if (child == 0) {
        dup2(output, 1);
        execl("/proc/self/exe", "server", "fresh", (char *)NULL);
        _exit(1);
    }
    return child;
}

static void execute_program(struct area *a) {
    char text[2048];
    ssize_t length;
    size_t used = 0;
    int ends[2], status;
    pid_t child;
    if (pipe(ends) < 0 || (child = start_program(ends[1])) < 0)
        fail("vfork");
    close(ends[1]);
    while ((length = read(ends[0], text + used, sizeof text - used)) > 0)
        used += length;
    close(ends[0]);
    must(waitpid(child, &status, 0) == child && status == 0, "well");
    say("program {%.*s}", (int)used, text);
    show(a);
}

static void privileges(struct area *a) {
    say("no_new_privs %d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    say("dumpable %d", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
    show(a);
}

/* A process that allows itself less, as servers with a sandbox do. */
static void filtered(struct area *a) {
    struct sock_filter allow_all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow_all};
    say("no_new_privs %s", outcome(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)));
    say("filter %s", outcome(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)));
    give_back(a);
}

static void filter(struct area *a) {
    in_child(filtered, a);
    show(a);
}

/* A process without privileges, as servers that drop root have. */
static void dropped(struct area *a) {
    say("setgid %s", outcome(setgid(33)));
    say("setuid %s", outcome(setuid(33)));
    resize(a, 200, MREMAP_MAYMOVE);
    give_back(a);
}

static void drop_user(struct area *a) {
    in_child(dropped, a);
    show(a);
}

static void read_and_write(struct area *a) {
    int ends[2];
    struct iovec both[] = {{page(a, 30), 2 * PAGE}, {page(a, 90), 2 * PAGE}};
    struct area copy = {a[1].id, page(a, 60), 4};
    if (pipe(ends) < 0)
        fail("pipe");
    say("write %zd", write(ends[1], a[1].at, 4 * PAGE));
    say("read %zd", read(ends[0], page(a, 60), 4 * PAGE));
    show(&copy);
    say("writev %zd", writev(ends[1], both, 2));
    say("readv %zd", readv(ends[0], both, 2));
    say("write %zd", write(ends[1], page(a, 127), 2 * PAGE));
    protect(a, 10, 20, PROT_READ, "read");
    say("read %s", outcome(read(ends[0], page(a, 15), 10)));
    show_part(a, 0, 60);
    show_part(a, 64, 128);
    ADVISE(a, 50, 62, MADV_DONTNEED);
    show_part(a, 0, 62);
    close(ends[0]);
    close(ends[1]);
    show(a + 1);
}

static void copy_by_pid(struct area *a) {
    struct iovec from = {page(a, 0), 20 * PAGE}, to = {page(a + 1, 50), 20 * PAGE};
    struct area copy = moved(a, page(a + 1, 50), 0);
    say("read %zd", process_vm_readv(getpid(), &to, 1, &from, 1, 0));
    show_part(&copy, 0, 20);
    from.iov_base = page(a, 100);
    to.iov_base = page(a + 1, 80);
    say("write %zd", process_vm_writev(getpid(), &to, 1, &from, 1, 0));
    copy = moved(a + 1, page(a, 100), 80);
    show_part(&copy, 80, 100);
    show_part(a, 0, 100);
    show_part(a, 120, 128);
    show_part(a + 1, 0, 50);
    show_part(a + 1, 100, 128);
}

static void write_as_file(struct area *a) {
    int file = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    struct area copy = {a[1].id, page(a, 40), 4};
    say("write %zd", pwrite(file, a[1].at, 4 * PAGE, (off_t)(uintptr_t)copy.at));
    show(&copy);
    protect(a, 60, 80, PROT_READ, "read");
    say("write %zd", pwrite(file, a[1].at, 4 * PAGE, (off_t)(uintptr_t)page(a, 60)));
    copy.at = page(a, 60);
    show(&copy);
    say("read %zd", pread(file, page(a + 1, 100), 4 * PAGE, (off_t)(uintptr_t)page(a, 20)));
    copy = moved(a, page(a + 1, 100), 20);
    show_part(&copy, 20, 24);
    ADVISE(a, 62, 70, MADV_DONTNEED);
    show_part(a, 62, 128);
    close(file);
}

/* As garbage collectors do: what is written to is noticed by a signal. */
static void write_barrier(struct area *a) {
    atomic_store(&barrier_hits, 0);
    mprotect(a->at, 128 * PAGE, PROT_READ);
    barrier = *a;
    fill(a, 10, 50, WRITTEN);
    say("%d noticed", atomic_load(&barrier_hits));
    fill(a, 40, 60, WRITTEN);
    say("%d noticed", atomic_load(&barrier_hits));
    mprotect(a->at, 128 * PAGE, PROT_READ);
    fill(a, 0, 20, WRITTEN);
    say("%d noticed", atomic_load(&barrier_hits));
    barrier.pages = 0;
    show(a);
    protect(a, 0, 128, PROT_READ | PROT_WRITE, "write");
    ADVISE(a, 5, 30, MADV_DONTNEED);
    show(a);
}
