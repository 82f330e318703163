/* A server that has something which may not be possible to capture, and answers "ok" over HTTP.
 *
 * server KIND PORT; for an unknown kind, or one that this kernel lacks, it ends with 2. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (1 << 16)
#define HUGE_SIZE (2 << 20)

static int port;

static long check(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

static void *mapped(void *address, const char *what) {
    check(address == MAP_FAILED ? -1 : 0, what);
    return address;
}

static void io_uring(void) {
    char parameters[120] = {0};
    check(syscall(SYS_io_uring_setup, 4, parameters), "io_uring_setup");
}

static void aio(void) {
    unsigned long context = 0;
    check(syscall(SYS_io_setup, 4, &context), "io_setup");
}

static void userfault(void) { check(syscall(SYS_userfaultfd, O_NONBLOCK), "userfaultfd"); }

static void perf(void) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE,
                                         .size = sizeof attributes,
                                         .config = PERF_COUNT_SW_CPU_CLOCK};
    check(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0), "perf_event_open");
}

static void bpf_map(void) {
    union bpf_attr attributes = {
        .map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4, .max_entries = 4};
    check(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes), "bpf map");
}

static void bpf_program(void) {
    struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
                              {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
                                 .insns = (unsigned long)code,
                                 .insn_cnt = 2,
                                 .license = (unsigned long)"GPL"};
    check(syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes), "bpf program");
}

static void pidfd_of(pid_t pid) { check(syscall(SYS_pidfd_open, pid, 0), "pidfd_open"); }

static void pidfd_self(void) { pidfd_of(getpid()); }

static void pidfd_init(void) { pidfd_of(1); }

static pid_t child(void (*act)(void)) {
    int ready[2];
    check(pipe(ready), "pipe");
    pid_t pid = check(fork(), "fork");
    if (pid == 0) {
        if (act)
            act();
        check(write(ready[1], "", 1), "write");
        for (;;)
            pause();
    }
    char byte;
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1)
        exit(2);
    return pid;
}

static void pidfd_child(void) { pidfd_of(child(NULL)); }

static void pidfd_dead(void) {
    pid_t pid = child(NULL);
    pidfd_of(pid);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void memfd(void) { check(ftruncate(check(memfd_create("m", 0), "memfd"), SIZE), "size"); }

static void memfd_huge(void) {
    int fd = check(memfd_create("m", MFD_HUGETLB), "memfd");
    check(ftruncate(fd, HUGE_SIZE), "size");
    mapped(mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
}

static void memfd_secret_(void) {
    int fd = check(syscall(SYS_memfd_secret, 0), "memfd_secret");
    check(ftruncate(fd, SIZE), "size");
    char *m = mapped(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
    m[0] = 1;
}

static void fanotify(void) {
    int fd = check(fanotify_init(FAN_CLASS_NOTIF, O_RDONLY), "fanotify_init");
    check(fanotify_mark(fd, FAN_MARK_ADD, FAN_OPEN, AT_FDCWD, "/etc"), "fanotify_mark");
}

static void inotify(void) {
    check(inotify_add_watch(inotify_init(), "/etc", IN_CREATE), "inotify");
}

static void inotify_deleted(void) {
    char path[] = "obstacle.XXXXXX";
    int file = check(mkstemp(path), "mkstemp");
    check(inotify_add_watch(inotify_init(), path, IN_MODIFY), "inotify");
    unlink(path);
    (void)file;
}

static void inotify_full(void) {
    int fd = inotify_init();
    check(inotify_add_watch(fd, ".", IN_CREATE), "inotify");
    close(creat("obstacle", 0600));
    unlink("obstacle");
}

static void landlock(void) {
    unsigned long long attributes[2] = {1};
    check(syscall(SYS_landlock_create_ruleset, attributes, 8, 0), "landlock");
}

static void landlocked(void) {
    unsigned long long attributes[2] = {1 << 12};
    int fd = check(syscall(SYS_landlock_create_ruleset, attributes, 8, 0), "landlock");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    check(syscall(SYS_landlock_restrict_self, fd, 0), "restrict");
    close(fd);
}

static void fs_context(void) { check(syscall(SYS_fsopen, "tmpfs", 0), "fsopen"); }

static void queue(void) {
    check(syscall(SYS_mq_open, "warmimg-obstacle", O_RDWR | O_CREAT, 0600, NULL), "mq_open");
    syscall(SYS_mq_unlink, "warmimg-obstacle");
}

static void open_(const char *path, int flags) { check(open(path, flags), path); }

static void null(void) { open_("/dev/null", O_RDWR); }
static void zero(void) { open_("/dev/zero", O_RDWR); }
static void full(void) { open_("/dev/full", O_RDWR); }
static void random_(void) { open_("/dev/random", O_RDWR); }
static void urandom(void) { open_("/dev/urandom", O_RDONLY); }
static void kmsg(void) { open_("/dev/kmsg", O_RDWR); }
static void ptmx(void) { open_("/dev/ptmx", O_RDWR); }
static void terminal(void) { open_("/dev/tty", O_RDWR); }
static void console(void) { open_("/dev/console", O_WRONLY | O_NOCTTY); }
static void path_only(void) { open_("/etc/passwd", O_PATH); }
static void namespace_file(void) { open_("/proc/self/ns/net", O_RDONLY); }
static void proc_file(void) { open_("/proc/self/maps", O_RDONLY); }
static void proc_mem(void) { open_("/proc/self/mem", O_RDWR); }
static void sys_file(void) { open_("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY); }
static void net_file(void) { open_("/proc/net/tcp", O_RDONLY); }
static void mem(void) { open_("/dev/mem", O_RDONLY); }

static void proc_dead(void) {
    char path[64];
    pid_t pid = child(NULL);
    sprintf(path, "/proc/%d/stat", pid);
    open_(path, O_RDONLY);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void node(mode_t kind, int major, int minor, int flags) {
    const char *path = "obstacle-device";
    unlink(path);
    check(mknod(path, kind | 0600, major << 8 | minor), "mknod");
    open_(path, flags);
}

static void tun(void) { node(S_IFCHR, 10, 200, O_RDWR); }
static void fuse(void) { node(S_IFCHR, 10, 229, O_RDWR); }
static void loop_control(void) { node(S_IFCHR, 10, 237, O_RDWR); }
static void disk(void) { open_("/dev/vda", O_RDONLY); }

static void zero_map(void) {
    int fd = check(open("/dev/zero", O_RDWR), "zero");
    char *m = mapped(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), "mmap");
    m[0] = 1;
}

static int sock(int family, int kind, int protocol) {
    return check(socket(family, kind, protocol), "socket");
}

static void mptcp(void) { sock(AF_INET, SOCK_STREAM, IPPROTO_MPTCP); }
static void sctp(void) { sock(AF_INET, SOCK_STREAM, IPPROTO_SCTP); }
static void packet(void) { sock(AF_PACKET, SOCK_RAW, htons(3)); }
static void alg(void) { sock(AF_ALG, SOCK_SEQPACKET, 0); }
static void xdp(void) { sock(44, SOCK_RAW, 0); }
static void can(void) { sock(29, SOCK_RAW, 1); }
static void raw(void) { sock(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static void udp(void) { sock(AF_INET, SOCK_DGRAM, 0); }
static void udplite(void) { sock(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE); }
static void tcp_fresh(void) { sock(AF_INET, SOCK_STREAM, 0); }
static void netlink(void) { sock(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); }
static void key(void) { sock(15, SOCK_RAW, 2); }
static void smc(void) { sock(43, SOCK_STREAM, 0); }

static void tcp_bound(void) {
    int fd = sock(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET};
    check(bind(fd, (void *)&at, sizeof at), "bind");
}

static void ping(void) {
    FILE *range = fopen("/proc/sys/net/ipv4/ping_group_range", "r");
    (void)range;
    sock(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
}

static void udp_corked(void) {
    int fd = sock(AF_INET, SOCK_DGRAM, 0), on = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(setsockopt(fd, IPPROTO_UDP, UDP_CORK, &on, sizeof on), "cork");
    check(sendto(fd, "x", 1, 0, (void *)&to, sizeof to), "sendto");
}

static void netlink_data(void) {
    struct {
        struct nlmsghdr head;
        char family[4];
    } ask = {{sizeof ask, 18, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0}};
    int fd = sock(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    check(send(fd, &ask, sizeof ask, 0), "send");
}

static void netlink_groups(void) {
    int fd = sock(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_groups = 1};
    check(bind(fd, (void *)&at, sizeof at), "bind");
}

static void netlink_uevent(void) {
    int fd = sock(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT);
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_groups = 1};
    check(bind(fd, (void *)&at, sizeof at), "bind");
}

static void vsock(void) { sock(AF_VSOCK, SOCK_STREAM, 0); }

static void unshare_(int what) { check(unshare(what), "unshare"); }
static void user_namespace(void) { unshare_(CLONE_NEWUSER); }
static void net_namespace(void) { unshare_(CLONE_NEWNET); }
static void ipc_namespace(void) { unshare_(CLONE_NEWIPC); }
static void uts_namespace(void) { unshare_(CLONE_NEWUTS); }
static void cgroup_namespace(void) { unshare_(CLONE_NEWCGROUP); }
static void mount_namespace(void) { unshare_(CLONE_NEWNS); }
static void child_user(void) { child(user_namespace); }
static void child_net(void) { child(net_namespace); }
static void child_ipc(void) { child(ipc_namespace); }
static void child_uts(void) { child(uts_namespace); }
static void child_cgroup(void) { child(cgroup_namespace); }
static void child_mount(void) { child(mount_namespace); }

static void child_pid(void) {
    unshare_(CLONE_NEWPID);
    child(NULL);
}

static void child_time(void) {
    unshare_(CLONE_NEWTIME);
    child(NULL);
}

static void trace_me(void) { check(ptrace(PTRACE_TRACEME, 0, 0, 0), "ptrace"); }
static void traced(void) { child(trace_me); }

static void filter(int flags) {
    struct sock_filter code[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    struct sock_fprog program = {1, code};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program), "seccomp");
}

static void seccomp_(void) { filter(0); }
static void seccomp_listener(void) { filter(SECCOMP_FILTER_FLAG_NEW_LISTENER); }

/* What a filter of containers and sandboxes may do: ptrace, and with it CRIU, is refused. */
static void seccomp_mmap(void) {
    struct sock_filter code[] = {
        {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
        {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_mmap},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
        {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    struct sock_fprog program = {4, code};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
}

static void seccomp_strict(void) {
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0), "strict");
    for (;;)
        ;
}
static void child_strict(void) {
    check(fork() == 0 ? (seccomp_strict(), 0) : 0, "fork");
}

static void lock(void) {
    char *m = mapped(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                     "mmap");
    check(mlock(m, SIZE), "mlock");
}

static void lock_all(void) { check(mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall"); }

static void huge(void) {
    char *m = mapped(mmap(NULL, HUGE_SIZE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0),
                     "huge pages");
    m[0] = 1;
}

static void shared(int flags, int is_removed) {
    int id = check(shmget(IPC_PRIVATE, HUGE_SIZE, IPC_CREAT | 0600 | flags), "shmget");
    char *m = mapped(shmat(id, NULL, 0), "shmat");
    m[0] = 1;
    if (is_removed)
        check(shmctl(id, IPC_RMID, NULL), "shmctl");
}

static void sysv(void) { shared(0, 0); }
static void sysv_removed(void) { shared(0, 1); }
static void sysv_huge(void) { shared(SHM_HUGETLB, 1); }
static void semaphores(void) { check(semget(IPC_PRIVATE, 1, IPC_CREAT | 0600), "semget"); }
static void messages(void) { check(msgget(IPC_PRIVATE, IPC_CREAT | 0600), "msgget"); }

static void in_deleted_folder(void) {
    check(mkdir("obstacle-folder", 0700), "mkdir");
    check(chdir("obstacle-folder"), "chdir");
    check(rmdir("../obstacle-folder"), "rmdir");
}

static void deleted_folder(void) {
    check(mkdir("obstacle-folder", 0700), "mkdir");
    open_("obstacle-folder", O_RDONLY);
    check(rmdir("obstacle-folder"), "rmdir");
}

static void changed_root(void) {
    if (access("root", F_OK))
        check(mkdir("root", 0700), "mkdir");
    check(chroot("root"), "chroot");
    check(chdir("/"), "chdir");
}

static void dispatch(void) {
    static char selector;
    check(prctl(59, 1, 0, 0, &selector), "syscall user dispatch");
}

static void unix_packets(void) {
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), "socketpair");
}

static void unix_passing(void) {
    int ends[2], fd = open("/etc/passwd", O_RDONLY);
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    check(sendmsg(ends[0], &message, 0), "sendmsg");
}

static void lease(void) {
    int fd = check(open("leased", O_RDWR | O_CREAT, 0600), "open");
    check(fcntl(fd, F_SETLEASE, F_WRLCK), "lease");
}

static void several(void) {
    io_uring();
    mptcp();
    userfault();
}

static const struct {
    const char *name;
    void (*act)(void);
} kinds[] = {
#define KIND(name) {#name, name}
    {"none", NULL}, KIND(io_uring), KIND(aio), KIND(userfault), KIND(perf), KIND(bpf_map),
    KIND(bpf_program), KIND(pidfd_self), KIND(pidfd_init), KIND(pidfd_child), KIND(pidfd_dead),
    KIND(memfd), KIND(memfd_huge), {"memfd_secret", memfd_secret_}, KIND(fanotify), KIND(inotify),
    KIND(inotify_deleted), KIND(inotify_full), KIND(landlock), KIND(landlocked), KIND(fs_context),
    KIND(queue), KIND(null), KIND(zero), KIND(full), {"random", random_}, KIND(urandom), KIND(kmsg),
    KIND(ptmx), KIND(terminal), KIND(console), KIND(path_only), KIND(namespace_file),
    KIND(proc_file), KIND(proc_mem), KIND(sys_file), KIND(net_file), KIND(mem), KIND(proc_dead),
    KIND(tun), KIND(fuse), KIND(loop_control), KIND(disk), KIND(zero_map), KIND(mptcp), KIND(sctp),
    KIND(packet), KIND(alg), KIND(xdp), KIND(can), KIND(raw), KIND(udp), KIND(udplite),
    KIND(tcp_fresh), KIND(tcp_bound), KIND(netlink), KIND(key), KIND(smc), KIND(ping),
    KIND(udp_corked), KIND(netlink_data), KIND(netlink_groups), KIND(netlink_uevent), KIND(vsock),
    KIND(user_namespace), KIND(net_namespace), KIND(ipc_namespace), KIND(uts_namespace),
    KIND(cgroup_namespace), KIND(mount_namespace), KIND(child_user), KIND(child_net),
    KIND(child_ipc), KIND(child_uts), KIND(child_cgroup), KIND(child_mount), KIND(child_pid),
    KIND(child_time), KIND(traced), {"seccomp", seccomp_}, KIND(seccomp_listener),
    KIND(seccomp_mmap), KIND(child_strict), KIND(lock), KIND(lock_all), KIND(huge), KIND(sysv),
    KIND(sysv_removed), KIND(sysv_huge), KIND(semaphores), KIND(messages), KIND(in_deleted_folder),
    KIND(deleted_folder), KIND(changed_root), KIND(dispatch), KIND(unix_packets),
    KIND(unix_passing), KIND(lease), KIND(several)};

static void serve(void) {
    int listener = sock(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), "SO_REUSEADDR");
    check(bind(listener, (void *)&at, sizeof at), "bind");
    check(listen(listener, 16), "listen");
    for (;;) {
        static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        char request[4096];
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        if (read(connection, request, sizeof request) > 0 &&
            write(connection, answer, sizeof answer - 1) < 0)
            perror("write");
        close(connection);
    }
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    port = atoi(words[2]);
    if (!strcmp(words[1], "list")) {
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            puts(kinds[i].name);
        return 0;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(words[1], kinds[i].name))
            continue;
        if (kinds[i].act)
            kinds[i].act();
        serve();
    }
    return 2;
}
