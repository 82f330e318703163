/* What mmap(2), mprotect(2), mremap(2), brk(2), the stack and malloc(3) do. */

static void read_pages(struct area *a) {
    struct area piece = part(a, 100, 128);
    show(a);
    use(a, 0, 128);
    show(a);
    fill(a, 20, 30, WRITTEN);
    *page(a, 60) = *page(a, 60);
    show(a);
    fill(&piece, 0, piece.pages, WRITTEN);
    show_part(a, 0, 100);
    show(&piece);
}

/* Before it is touched, mincore(2) tells of the page cache, which the kernel may have shrunk. */
static void resident(struct area *a) {
    show(a);
    show_resident(a, 0, 128);
}

/* Pages that nobody has used before the capture. */
static void leave_holes(struct area *a) {
    for (int i = 0; i < 3; i++) {
        madvise(page(a + i, 32), 32 * PAGE, MADV_DONTNEED);
        madvise(page(a + i, 127), PAGE, MADV_DONTNEED);
    }
}

static void holes(struct area *a) {
    show_resident(a, 0, 128);
    fill(a, 40, 50, WRITTEN);
    show(a);
    ADVISE(a, 20, 45, MADV_DONTNEED);
    show(a);
    ADVISE(a + 1, 20, 127, MADV_WIPEONFORK);
    show_in_child(a + 1);
    show(a + 1);
    say("mremap %s", outcome((long)mremap(a[2].at, 128 * PAGE, 64 * PAGE, 0)));
    show(a + 2);
}

/* Makes the first two areas and the gap between one piece of memory, by several calls. */
static void merge_pieces(struct area *a) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    for (long n = 0; n < 3; n++)
        if (mmap(page(a, 128 * n), 128 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
            fail("mmap");
    a->pages = 3 * 128;
    fill(a, 0, 250, PATTERN);
    fill(a, 260, 384, PATTERN);
}

static void resize(struct area *a, long pages, int flags) {
    unsigned char *at = mremap(a->at, a->pages * PAGE, pages * PAGE, flags);
    const char *where = at == MAP_FAILED ? "" : at == a->at ? " in place" : " moved";
    say("%ld to %ld pages %s%s", a->pages, pages, outcome((long)at), where);
    if (at != MAP_FAILED) {
        a->at = at;
        a->pages = pages;
    }
}

static void merged(struct area *a) {
    ADVISE(a, 100, 140, MADV_DONTNEED);
    show(a);
    ADVISE(a, 200, 270, MADV_WIPEONFORK);
    show_in_child(a);
    ADVISE(a, 0, 384, MADV_KEEPONFORK);
    resize(a, 500, MREMAP_MAYMOVE);
    show(a);
}

static void protect(struct area *a, long from, long to, int protection, const char *name) {
    int result = mprotect(page(a, from), (to - from) * PAGE, protection);
    say("%s %ld..%ld %s", name, from, to, outcome(result));
}

static void protections(struct area *a) {
    protect(a, 20, 80, PROT_NONE, "none");
    show(a);
    protect(a, 40, 128, PROT_READ, "read");
    show(a);
    say("10 %s, 100 %s", can_write(a, 10), can_write(a, 100));
    protect(a, 30, 60, PROT_READ | PROT_WRITE, "write");
    fill(a, 35, 55, WRITTEN);
    protect(a, 0, 128, PROT_READ | PROT_WRITE | PROT_EXEC, "execute");
    show(a);
    protect(a, 0, 128, PROT_NONE, "none");
    ADVISE(a, 50, 100, MADV_DONTNEED);
    protect(a, 0, 128, PROT_READ, "read");
    show(a);
}

/* Puts a function that returns a number into a page. */
static void put_code(const struct area *a, long n, unsigned char number) {
    const unsigned char code[] = {0xb8, number, 0, 0, 0, 0xc3};
    memcpy(page(a, n), code, sizeof code);
}

static int call(const struct area *a, long n) {
    sigjmp_buf here;
    int result = -1;
    if (sigsetjmp(here, 0) == 0) {
        sigjmp_buf *before = caught;
        caught = &here;
        result = ((int (*)(void))page(a, n))();
        caught = before;
    } else
        caught = NULL;
    return result;
}

static void write_code(struct area *a) {
    for (int i = 0; i < 2; i++)
        for (long n = 0; n < 128; n++)
            put_code(a + i, n, n);
    mprotect(a[0].at, 64 * PAGE, PROT_READ | PROT_EXEC);
    mprotect(a[1].at, 128 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static void execute(struct area *a) {
    say("page 7 %d, page 100 %d", call(a, 7), call(a, 100));
    protect(a, 90, 110, PROT_READ | PROT_EXEC, "execute");
    say("page 100 %d", call(a, 100));
    protect(a, 0, 10, PROT_READ | PROT_WRITE, "write");
    put_code(a, 7, 200);
    protect(a, 0, 10, PROT_READ | PROT_EXEC, "execute");
    say("page 7 %d, page 8 %d", call(a, 7), call(a, 8));
    protect(a, 0, 64, PROT_NONE, "none");
    protect(a, 0, 64, PROT_READ | PROT_EXEC, "execute");
    say("page 7 %d, page 63 %d", call(a, 7), call(a, 63));
    /* All at once allowed, as some compilers have it. */
    put_code(a + 1, 9, 201);
    say("page 9 %d, page 10 %d", call(a + 1, 9), call(a + 1, 10));
    ADVISE(a + 1, 8, 20, MADV_DONTNEED);
    put_code(a + 1, 9, 202);
    say("page 9 %d, page 20 %d", call(a + 1, 9), call(a + 1, 20));
}

/* Memory that could not be written, or not even read, at the capture. */
static void forbid(struct area *a) {
    mprotect(a[0].at, 128 * PAGE, PROT_READ);
    mprotect(page(a + 1, 32), 64 * PAGE, PROT_NONE);
}

static void forbidden(struct area *a) {
    say("%s", can_write(a, 5));
    show(a);
    protect(a, 0, 64, PROT_READ | PROT_WRITE, "write");
    fill(a, 10, 20, WRITTEN);
    show(a);
    show(a + 1);
    protect(a + 1, 0, 128, PROT_READ | PROT_WRITE, "write");
    show(a + 1);
    ADVISE(a + 1, 50, 100, MADV_DONTNEED);
    show(a + 1);
}

static void grow_in_place(struct area *a) {
    resize(a, 200, 0);
    make_room(a);
    resize(a, 200, 0);
    show(a);
    fill(a, 120, 140, WRITTEN);
    ADVISE(a, 100, 130, MADV_DONTNEED);
    show(a);
}

static void grow_moving(struct area *a) {
    unsigned char *before = a->at;
    struct area old = *a;
    resize(a, 1000, MREMAP_MAYMOVE);
    must(a->at != before, "elsewhere");
    show(a);
    show(&old);
    ADVISE(a, 30, 40, MADV_DONTNEED);
    ADVISE(a, 50, 60, MADV_WIPEONFORK);
    show_in_child(a);
    use(a + 1, 0, 128);
    resize(a + 1, 1000, MREMAP_MAYMOVE);
    resize(a + 1, 2000, MREMAP_MAYMOVE);
    show(a + 1);
}

/* The pages of a piece that has been moved keep their numbers. */
static struct area moved(const struct area *a, unsigned char *at, long from) {
    return (struct area){a->id, at - from * PAGE, a->pages};
}

static void grow_middle(struct area *a) {
    unsigned char *at;
    struct area piece;
    at = mremap(page(a, 40), 20 * PAGE, 30 * PAGE, 0);
    say("in place %s", outcome((long)at));
    at = mremap(page(a, 40), 20 * PAGE, 30 * PAGE, MREMAP_MAYMOVE);
    say("moving %s", outcome((long)at));
    if (at == MAP_FAILED)
        return;
    show(a);
    piece = moved(a, at, 40);
    show_part(&piece, 40, 70);
    fill(&piece, 50, 65, WRITTEN);
    say("DONTNEED %s", outcome(madvise(page(&piece, 45), 10 * PAGE, MADV_DONTNEED)));
    show_part(&piece, 40, 70);
}

static void move_whole(struct area *a) {
    struct area old = *a;
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    unsigned char *place = reserve(300);
    must(mremap(a->at, 128 * PAGE, 128 * PAGE, flags, place + PAGE) == place + PAGE, "moved");
    a->at = place + PAGE;
    show(&old);
    show(a);
    ADVISE(a, 20, 40, MADV_DONTNEED);
    fill(a, 30, 50, WRITTEN);
    show_in_child(a);
    /* And once more, smaller. */
    place = reserve(128);
    must(mremap(a->at, 128 * PAGE, 10 * PAGE, flags, place) == place, "moved");
    *a = (struct area){a->id, place, 10};
    show(a);
}

static void move_onto(struct area *a) {
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    struct area piece = moved(a, page(a + 1, 60), 10);
    must(mremap(page(a, 10), 20 * PAGE, 20 * PAGE, flags, page(a + 1, 60)) != MAP_FAILED, "moved");
    show(a);
    show_part(a + 1, 0, 60);
    show_part(&piece, 10, 30);
    show_part(a + 1, 80, 128);
    say("onto itself %s",
        outcome((long)mremap(page(a, 40), 20 * PAGE, 20 * PAGE, flags, page(a, 50))));
    say("DONTNEED %s", outcome(madvise(page(a + 1, 50), 20 * PAGE, MADV_DONTNEED)));
    show_part(a + 1, 0, 70);
    show_part(&piece, 20, 30);
}

static void move_leaving(struct area *a) {
    struct area new = *a;
    /* The C library passes the address on with this flag, too. */
    new.at = mremap(a->at, 128 * PAGE, 128 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    say("DONTUNMAP %s", outcome((long)new.at));
    if (new.at == MAP_FAILED)
        return;
    show_resident(a, 0, 128);
    show(a);
    show(&new);
    fill(a, 30, 60, WRITTEN);
    ADVISE(&new, 50, 70, MADV_DONTNEED);
    show(a);
    show(&new);
    new = moved(a + 1, reserve(20), 40);
    say("a piece %s", outcome((long)mremap(page(a + 1, 40), 20 * PAGE, 20 * PAGE,
                                           MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED,
                                           page(&new, 40))));
    show(a + 1);
    show_part(&new, 40, 60);
}

static void shrink_and_grow(struct area *a) {
    resize(a, 50, 0);
    resize(a, 100, 0);
    show(a);
    resize(a, 30, 0);
    resize(a, 200, MREMAP_MAYMOVE);
    show(a);
    resize(a, 0, MREMAP_MAYMOVE);
}

static void move_nothing(struct area *a) {
    say("of no size %s", outcome((long)mremap(a->at, 0, 128 * PAGE, MREMAP_MAYMOVE)));
    say("of the same size %s", outcome((long)mremap(a->at, 128 * PAGE, 128 * PAGE, 0)));
    say("at a byte %s", outcome((long)mremap(a->at + 1, PAGE, PAGE, MREMAP_MAYMOVE)));
    say("too much %s", outcome((long)mremap(a->at, 129 * PAGE, 300 * PAGE, MREMAP_MAYMOVE)));
    say("unknown flag %s", outcome((long)mremap(a->at, 128 * PAGE, 200 * PAGE, 64)));
    show(a);
}

/* One mapping stays one, as mremap wants it, when pages of it are not there or were given back. */
static void move_with_holes(struct area *a) {
    resize(a, 200, MREMAP_MAYMOVE);
    show(a);
    ADVISE(a + 1, 70, 90, MADV_DONTNEED);
    fill(a + 1, 80, 85, WRITTEN);
    resize(a + 1, 200, MREMAP_MAYMOVE);
    show(a + 1);
    ADVISE(a + 2, 10, 50, MADV_WIPEONFORK);
    ADVISE(a + 2, 0, 128, MADV_KEEPONFORK);
    make_room(a + 2);
    resize(a + 2, 150, 0);
    show(a + 2);
}

static void map_over(struct area *a) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    void *at = mmap(page(a, 40), 20 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    must(at == page(a, 40), "mapped");
    show(a);
    ADVISE(a, 50, 70, MADV_DONTNEED);
    fill(a, 45, 65, WRITTEN);
    show(a);
    resize(a, 300, MREMAP_MAYMOVE);
    show(a);
}

static void unmap_middle(struct area *a) {
    say("munmap %s", outcome(munmap(page(a, 40), 20 * PAGE)));
    show(a);
    ADVISE(a, 30, 70, MADV_DONTNEED);
    ADVISE(a, 30, 70, MADV_WIPEONFORK);
    fill(a, 65, 80, WRITTEN);
    show_in_child(a);
    show(a);
}

/* The heap of brk(2) beyond what malloc has. */
static struct area heap = {.id = 900, .pages = 128};

static void grow_heap(struct area *unused) {
    (void)unused;
    sbrk(-(intptr_t)sbrk(0) & (PAGE - 1));
    heap.at = sbrk(heap.pages * PAGE);
    fill(&heap, 0, heap.pages, PATTERN);
}

static void break_heap(struct area *unused) {
    (void)unused;
    must(sbrk(0) == page(&heap, 128), "at the end");
    sbrk(-64 * PAGE);
    show(&heap);
    sbrk(64 * PAGE);
    show(&heap);
    sbrk(64 * PAGE);
    heap.pages += 64;
    fill(&heap, 150, 160, WRITTEN);
    show(&heap);
    ADVISE(&heap, 10, 70, MADV_DONTNEED);
    show_in_child(&heap);
    /* malloc's again. */
    sbrk(-heap.pages * PAGE);
    show(&heap);
}

/* Blocks of malloc: large ones have mappings of their own, small ones are in the heap. */
static struct area large[4], small[64];

static void allocate(struct area *unused) {
    (void)unused;
    for (int i = 0; i < 4; i++) {
        large[i] = (struct area){910 + i, malloc(256 * PAGE), 256};
        fill(&large[i], 0, 256, PATTERN);
    }
    for (int i = 0; i < 64; i++) {
        small[i] = (struct area){920 + i, malloc(25 * PAGE), 25};
        fill(&small[i], 0, 25, PATTERN);
    }
}

/* A block begins within a page, so the page in which it ended keeps what was behind it. */
static void reallocate(struct area *a, long pages) {
    long before = a->pages;
    a->at = realloc(a->at, pages * PAGE);
    a->pages = pages;
    show_part(a, 0, pages < before ? pages : before);
    if (pages > before + 1)
        show_part(a, before + 1, pages);
}

static void malloc_large(struct area *unused) {
    (void)unused;
    reallocate(&large[0], 1024);
    reallocate(&large[0], 100);
    reallocate(&large[0], 200);
    reallocate(&large[1], 60);
    reallocate(&large[1], 4000);
    free(large[0].at);
    free(large[2].at);
    large[2].at = calloc(256, PAGE);
    show(&large[2]);
    show(&large[3]);
}

static void malloc_small(struct area *unused) {
    int kept = 1, zeros = 1;
    void *end = sbrk(0);
    (void)unused;
    for (int i = 0; i < 48; i += 2)
        free(small[i].at);
    say("trim %d", malloc_trim(0));
    for (int i = 1; i < 64; i += 2)
        kept = kept && all(&small[i], 0, 1, "pattern");
    must(kept, "pattern in the others");
    for (int i = 0; i < 24; i++) {
        small[2 * i].at = calloc(25, PAGE);
        zeros = zeros && all(&small[2 * i], 0, 1, "zeros");
    }
    must(zeros, "zeros in new ones");
    for (int i = 32; i < 64; i++)
        free(small[i].at);
    must((char *)sbrk(0) < (char *)end, "a smaller heap");
    for (int i = 32; i < 64; i++) {
        small[i].at = calloc(25, PAGE);
        zeros = zeros && all(&small[i], 0, 1, "zeros");
    }
    must(zeros, "zeros in new ones");
}

static __attribute__((noinline)) int recurse(int depth) {
    unsigned char frame[PAGE];
    int good = 1;
    memset(frame, depth, sizeof frame);
    __asm__ volatile("" : : "r"(frame) : "memory");
    if (depth > 0)
        good = recurse(depth - 1);
    for (size_t i = 0; i < sizeof frame; i++)
        good = good && frame[i] == (unsigned char)depth;
    return good;
}

static void use_stack(struct area *unused) {
    (void)unused;
    recurse(300);
}

static void deep_stack(struct area *unused) {
    (void)unused;
    must(recurse(200), "well to where it has been");
    must(recurse(1200), "well to where it has not been");
    in_child(use_stack, NULL);
}

/* Memory that grows down as it is used. */
static void map_growing(struct area *a) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN;
    if (mmap(a->at, 128 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        fail("mmap");
    fill(a, 0, 128, PATTERN);
}

static void growing_down(struct area *a) {
    struct area grown = {a->id, a->at - 64 * PAGE, 192};
    munmap(grown.at, 64 * PAGE);
    show(a);
    for (long n = 63; n >= 20; n--)
        *page(&grown, n) = 0;
    show_part(&grown, 20, 64);
    show(a);
    say("DONTNEED %s", outcome(madvise(page(&grown, 60), 8 * PAGE, MADV_DONTNEED)));
    show_part(&grown, 60, 64);
    show(a);
}
