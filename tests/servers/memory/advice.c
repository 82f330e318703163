/* What madvise(2) and its like do. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static void advise(struct area *a, long from, long to, int advice, const char *name) {
    int result = madvise(page(a, from), (to - from) * PAGE, advice);
    say("%s %ld..%ld %s", name, from, to, outcome(result));
}

#define ADVISE(a, from, to, advice) advise(a, from, to, advice, &#advice[5])

static void dontneed_whole(struct area *a) {
    long before, after;
    ADVISE(a, 0, 128, MADV_DONTNEED);
    show_resident(a, 0, 128);
    show(a);
    /* Once more, with pages that are in use. */
    show(a + 1);
    before = resident_pages();
    ADVISE(a + 1, 0, 128, MADV_DONTNEED);
    after = resident_pages();
    must(before - after > 120, "that much less in memory");
    show_resident(a + 1, 0, 128);
    show(a + 1);
}

static void dontneed_middle(struct area *a) {
    ADVISE(a, 40, 60, MADV_DONTNEED);
    show_resident(a, 40, 60);
    show(a);
    fill(a, 50, 70, WRITTEN);
    show(a);
    ADVISE(a, 30, 55, MADV_DONTNEED);
    show(a);
}

static void dontneed_used(struct area *a) {
    use(a, 0, 128);
    ADVISE(a, 0, 10, MADV_DONTNEED);
    ADVISE(a, 118, 128, MADV_DONTNEED);
    ADVISE(a, 50, 51, MADV_DONTNEED);
    fill(a, 49, 52, WRITTEN);
    show(a);
}

static void dontneed_unaligned(struct area *a) {
    unsigned char *end = page(a, 128);
    say("at a byte %s", outcome(madvise(a->at + 1, PAGE, MADV_DONTNEED)));
    say("of no length %s", outcome(madvise(a->at, 0, MADV_DONTNEED)));
    say("of any length %s", outcome(madvise(a->at, SIZE_MAX - PAGE, MADV_DONTNEED)));
    show(a);
    say("a byte %s", outcome(madvise(page(a, 3), 1, MADV_DONTNEED)));
    say("a page and a byte %s", outcome(madvise(page(a, 5), PAGE + 1, MADV_DONTNEED)));
    make_room(a);
    say("over the end %s", outcome(madvise(end - 2 * PAGE, 3 * PAGE + 7, MADV_DONTNEED)));
    say("behind the end %s", outcome(madvise(end, PAGE, MADV_DONTNEED)));
    show(a);
}

static void dontneed_across(struct area *a) {
    long whole = 3 * 128 * PAGE;
    say("with no access between %s", outcome(madvise(a[0].at, whole, MADV_DONTNEED)));
    show(a);
    show(a + 1);
    make_room(a + 2);
    say("with a hole between %s", outcome(madvise(a[2].at, whole, MADV_DONTNEED)));
    show(a + 2);
    show(a + 3);
}

static void dontneed_again(struct area *a) {
    int good = 1;
    for (int round = 0; round < 50; round++) {
        good = good && madvise(page(a, 32), 64 * PAGE, MADV_DONTNEED) == 0;
        for (long n = 32; n < 96; n++)
            good = good && !strcmp(class(a, n), "zeros");
        fill(a, 32, 96, WRITTEN);
        for (long n = 32; n < 96; n++)
            good = good && !strcmp(class(a, n), "written");
    }
    must(good, "zeros each time");
    show(a);
    ADVISE(a, 0, 128, MADV_DONTNEED);
    ADVISE(a, 0, 128, MADV_DONTNEED);
    show(a);
}

/* Pieces of some pages, every other one. */
static void dontneed_every(struct area *a, long piece) {
    int good = 1;
    for (long n = piece; n < a->pages; n += 2 * piece)
        good = good && madvise(page(a, n), piece * PAGE, MADV_DONTNEED) == 0;
    must(good, "ok each time");
    for (long n = 0; n < a->pages; n++)
        good = good && !strcmp(class(a, n), n / piece % 2 == 0 ? "pattern" : "zeros");
    must(good, "pattern and zeros in turn");
    ADVISE(a, 0, a->pages, MADV_DONTNEED);
    show(a);
}

static void dontneed_pieces(struct area *a) { dontneed_every(a, 1); }

static void dontneed_blocks(struct area *a) { dontneed_every(a, 16); }

static void dontneed_protected(struct area *a) {
    mprotect(page(a, 20), 20 * PAGE, PROT_READ);
    mprotect(page(a, 60), 20 * PAGE, PROT_NONE);
    ADVISE(a, 10, 70, MADV_DONTNEED);
    say("20 %s, 50 %s", can_write(a, 20), can_write(a, 50));
    show(a);
    say("%s", outcome(mprotect(a->at, 128 * PAGE, PROT_READ | PROT_WRITE)));
    show(a);
    fill(a, 0, 128, WRITTEN);
    show(a);
}

static void dontneed_locked(struct area *a) {
    say("mlock %s", outcome(mlock(page(a, 32), 64 * PAGE)));
    ADVISE(a, 40, 50, MADV_DONTNEED);
    ADVISE(a, 0, 128, MADV_DONTNEED);
    show(a);
    ADVISE(a, 60, 70, MADV_DONTNEED_LOCKED);
    show_resident(a, 32, 96);
    show(a);
    say("munlock %s", outcome(munlock(a->at, 128 * PAGE)));
    ADVISE(a, 40, 50, MADV_DONTNEED);
    ADVISE(a, 100, 110, MADV_DONTNEED_LOCKED);
    show(a);
}

static void lock_pages(struct area *a) {
    say("mlock %s", outcome(mlock(a->at, 128 * PAGE)));
    show_resident(a, 0, 128);
    say("munlock %s", outcome(munlock(page(a, 30), 128 * PAGE - 30 * PAGE)));
    show(a);
    say("mlock2 %s", outcome(mlock2(a[1].at, 128 * PAGE, MLOCK_ONFAULT)));
    show(a + 1);
}

/* Memory that was locked at the capture. */
static void lock_before(struct area *a) { mlock(a->at, a->pages * PAGE); }

static void locked_before(struct area *a) {
    ADVISE(a, 40, 50, MADV_DONTNEED);
    say("munlock %s", outcome(munlock(page(a, 40), 10 * PAGE)));
    ADVISE(a, 40, 50, MADV_DONTNEED);
    ADVISE(a, 39, 41, MADV_DONTNEED);
    show(a);
}

/* The kernel may take such pages whenever it likes. */
static void free_lazily(struct area *a) {
    int good = 1;
    show_part(a, 0, 32);
    ADVISE(a, 10, 100, MADV_FREE);
    fill(a, 50, 60, WRITTEN);
    for (long n = 10; n < 100; n++) {
        const char *this = class(a, n);
        good = good && (n / 10 == 5 ? !strcmp(this, "written")
                                    : !strcmp(this, "pattern") || !strcmp(this, "zeros"));
    }
    must(good, "pattern or zeros or written");
    show_part(a, 0, 10);
    show_part(a, 100, 128);
    fill(a, 0, 128, WRITTEN);
    show(a);
    ADVISE(a, 0, 128, MADV_FREE);
    ADVISE(a, 0, 128, MADV_DONTNEED);
    show(a);
}

static void remove_pages(struct area *a) {
    ADVISE(a, 0, 128, MADV_REMOVE);
    ADVISE(a, 10, 20, MADV_REMOVE);
    show(a);
}

static void hints(struct area *a) {
    ADVISE(a, 0, 128, MADV_WILLNEED);
    ADVISE(a, 0, 10, MADV_RANDOM);
    ADVISE(a, 0, 20, MADV_SEQUENTIAL);
    ADVISE(a, 0, 128, MADV_NORMAL);
    ADVISE(a, 0, 128, MADV_DONTDUMP);
    ADVISE(a, 10, 20, MADV_DODUMP);
    say("unknown %s", outcome(madvise(a->at, PAGE, 77)));
    show(a);
}

static void cold_and_out(struct area *a) {
    use(a, 0, 128);
    ADVISE(a, 0, 64, MADV_COLD);
    ADVISE(a, 20, 128, MADV_PAGEOUT);
    show(a);
    fill(a, 0, 40, WRITTEN);
    ADVISE(a, 0, 128, MADV_PAGEOUT);
    show(a);
}

static void populate(struct area *a) {
    ADVISE(a, 0, 64, MADV_POPULATE_READ);
    ADVISE(a, 32, 128, MADV_POPULATE_WRITE);
    show(a);
    ADVISE(a, 0, 128, MADV_DONTNEED);
    ADVISE(a, 0, 64, MADV_POPULATE_WRITE);
    show_resident(a, 0, 128);
    show(a);
    mprotect(a[1].at, 64 * PAGE, PROT_READ);
    ADVISE(a + 1, 0, 64, MADV_POPULATE_WRITE);
    mprotect(a[1].at, 64 * PAGE, PROT_NONE);
    ADVISE(a + 1, 0, 64, MADV_POPULATE_READ);
    mprotect(a[1].at, 64 * PAGE, PROT_READ);
    show(a + 1);
}

static void wipe_on_fork(struct area *a) {
    ADVISE(a, 0, 128, MADV_WIPEONFORK);
    show_in_child(a);
    show(a);
    use(a + 1, 0, 128);
    ADVISE(a + 1, 40, 60, MADV_WIPEONFORK);
    show_in_child(a + 1);
    fill(a + 1, 50, 52, WRITTEN);
    ADVISE(a + 1, 45, 55, MADV_KEEPONFORK);
    show_in_child(a + 1);
    ADVISE(a + 1, 0, 128, MADV_KEEPONFORK);
    show_in_child(a + 1);
    show(a + 1);
}

static void wipe_before(struct area *a) { madvise(page(a, 32), 64 * PAGE, MADV_WIPEONFORK); }

static void wiped_before(struct area *a) {
    show_in_child(a);
    ADVISE(a, 50, 60, MADV_DONTNEED);
    ADVISE(a, 60, 128, MADV_KEEPONFORK);
    show_in_child(a);
    show(a);
}

/* What of an area is told something, its neighbours are not. */
static void tell_half(struct area *a) { madvise(page(a, 64), 64 * PAGE, MADV_NOHUGEPAGE); }

static void told_before(struct area *a) {
    show(a);
    ADVISE(a, 32, 96, MADV_DONTNEED);
    show(a);
}

static void dont_fork(struct area *a) {
    ADVISE(a, 30, 60, MADV_DONTFORK);
    show_in_child(a);
    ADVISE(a, 40, 128, MADV_DOFORK);
    show_in_child(a);
    ADVISE(a, 20, 35, MADV_DONTNEED);
    fill(a, 25, 28, WRITTEN);
    show_in_child(a);
    show(a);
}

/* What is said of whole areas goes on for pieces that are taken back. */
static void kept(struct area *a) {
    ADVISE(a, 0, 128, MADV_DONTFORK);
    ADVISE(a, 40, 60, MADV_DONTNEED);
    fill(a, 50, 70, WRITTEN);
    show_in_child(a);
    show(a);
    ADVISE(a + 1, 40, 60, MADV_DONTNEED);
    ADVISE(a + 1, 30, 50, MADV_WIPEONFORK);
    fill(a + 1, 45, 48, WRITTEN);
    show_in_child(a + 1);
    show(a + 1);
}

/* Leaves of an area what a huge page can take the place of. */
static void align_huge(struct area *a) {
    long size = 512 * PAGE;
    a->at += -(uintptr_t)a->at % size;
    a->pages = 512;
    fill(a, 0, 512, PATTERN);
}

/* Huge pages are had or not, as there are free ones. */
static void collapse(struct area *a) {
    int result = madvise(a->at, 512 * PAGE, MADV_COLLAPSE);
    if (result < 0 && (errno == ENOMEM || errno == EAGAIN || errno == EBUSY))
        result = 0;
    say("COLLAPSE %s", outcome(result));
}

static void huge(struct area *a) {
    collapse(a);
    ADVISE(a, 100, 150, MADV_DONTNEED);
    show(a);
    ADVISE(a, 0, 512, MADV_HUGEPAGE);
    fill(a, 120, 130, WRITTEN);
    collapse(a);
    show(a);
    ADVISE(a, 0, 512, MADV_NOHUGEPAGE);
    collapse(a);
    ADVISE(a, 0, 512, MADV_DONTNEED);
    ADVISE(a, 0, 512, MADV_HUGEPAGE);
    fill(a, 0, 5, WRITTEN);
    show(a);
}

static void merge(struct area *a) {
    ADVISE(a, 0, 128, MADV_MERGEABLE);
    ADVISE(a, 10, 20, MADV_DONTNEED);
    show(a);
    ADVISE(a, 0, 128, MADV_UNMERGEABLE);
    show(a);
}

static void guard_pages(struct area *a) {
    ADVISE(a, 40, 60, MADV_GUARD_INSTALL);
    show(a);
    ADVISE(a, 30, 50, MADV_DONTNEED);
    show(a);
    show_in_child(a);
    ADVISE(a, 35, 45, MADV_GUARD_REMOVE);
    show(a);
    fill(a, 40, 42, WRITTEN);
    ADVISE(a, 0, 128, MADV_GUARD_REMOVE);
    show(a);
    mlock(a[1].at, 10 * PAGE);
    ADVISE(a + 1, 5, 15, MADV_GUARD_INSTALL);
    show(a + 1);
}

static void of_process(struct area *a) {
    struct iovec pieces[] = {
        {page(a, 10), 10 * PAGE}, {page(a, 40), 20 * PAGE}, {page(a + 1, 5), PAGE}};
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    struct { const char *name; int advice; } advices[] = {
        {"COLD", MADV_COLD},         {"PAGEOUT", MADV_PAGEOUT}, {"WILLNEED", MADV_WILLNEED},
        {"DONTNEED", MADV_DONTNEED}, {"FREE", MADV_FREE},       {"REMOVE", MADV_REMOVE}};
    for (size_t i = 0; i < sizeof advices / sizeof *advices; i++) {
        ssize_t bytes = process_madvise(self, pieces, 3, advices[i].advice, 0);
        if (bytes < 0)
            say("%s %s", advices[i].name, outcome(bytes));
        else
            say("%s %zd pages", advices[i].name, bytes / PAGE);
        if (advices[i].advice == MADV_DONTNEED) {
            show(a);
            show(a + 1);
        }
    }
    make_room(a);
    pieces[1] = (struct iovec){page(a, 127), 2 * PAGE};
    say("over the end: %ld", process_madvise(self, pieces, 3, MADV_DONTNEED, 0) / PAGE);
    show(a);
    close(self);
}

static void name_pages(struct area *a) {
    int result = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, a->at, 128 * PAGE, "named");
    say("the whole %s", outcome(result));
    result = prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, page(a, 50), 10 * PAGE, NULL);
    say("a piece %s", outcome(result));
    ADVISE(a, 40, 55, MADV_DONTNEED);
    show(a);
}

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static void seal(struct area *a) {
    say("mseal %s", outcome(syscall(SYS_mseal, page(a, 32), 64 * PAGE, 0L)));
    ADVISE(a, 40, 50, MADV_DONTNEED);
    show(a);
    fill(a, 60, 64, WRITTEN);
    say("munmap %s", outcome(munmap(page(a, 70), PAGE)));
    say("mprotect %s", outcome(mprotect(page(a, 70), PAGE, PROT_READ)));
    ADVISE(a, 80, 90, MADV_WIPEONFORK);
    show_in_child(a);
    show(a);
}
