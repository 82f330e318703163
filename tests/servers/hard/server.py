"""Servers whose process trees are hard to capture.

Usage: server.py KIND PORT [SECOND]

Each works in the current folder, listens, and answers "ok" to a request for / when what it is named
after still does its work, else with what is wrong. The kinds are the functions under "Processes"
and "Descriptors"; what one does before it returns happens before the server listens.
"""

import ctypes
import fcntl
import mmap
import os
import pty
import select
import signal
import socket
import struct
import sys
import time

kind, port = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)


def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def listen(at=port):
    return socket.create_server(("127.0.0.1", at))


def answer(connection, respond):
    with connection:
        request = connection.recv(65536).decode()
        if not request:
            return
        try:
            body = respond(request.split(" ")[1])
        except Exception as error:
            body = repr(error)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body.encode())


def serve(listener, respond):
    while True:
        connection, _ = listener.accept()
        answer(connection, respond)


# Processes


def daemon():
    """Goes to the background by two forks."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    return lambda path: "ok" if os.getppid() == 1 else f"child of {os.getppid()}"


def reexec():
    """Executes itself before it listens, and with its listener at each request for /again."""
    generation = int(os.environ.get("GENERATION", 0))
    listener = None
    if "LISTENER" in os.environ:
        listener = socket.socket(fileno=int(os.environ["LISTENER"]))

    def again():
        os.environ["GENERATION"] = str(generation + 1)
        os.execv(sys.executable, [sys.executable, *sys.argv])

    if generation == 0:
        again()
    listener = listener or listen()

    def respond(path):
        return "ok" if path == "/" else str(generation)

    while True:
        connection, _ = listener.accept()
        path = None

        def note(asked):
            nonlocal path
            path = asked
            return respond(asked)

        answer(connection, note)
        if path == "/again":
            os.set_inheritable(listener.fileno(), True)
            os.environ["LISTENER"] = str(listener.fileno())
            again()


def ondemand():
    """Forks a worker when there is a client, which goes on with the next ones."""
    listener = listen()
    worker = None
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll()
        if worker is None:
            worker = os.fork()
            if worker == 0:
                serve(listener, lambda path: "ok" if os.getppid() > 1 else "orphan")
        # The worker takes this client and all others.
        os.waitpid(worker, 0)
        worker = None


def drop():
    """Drops root for good."""
    os.setgroups([33, 60])
    os.setresgid(33, 33, 33)
    os.setresuid(33, 33, 33)

    def respond(_):
        ids = os.getresuid() + os.getresgid() + tuple(os.getgroups())
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        fs = fields["Uid"].split()[3], fields["Gid"].split()[3]
        capabilities = fields["CapPrm"].strip().strip("0"), fields["CapEff"].strip().strip("0")
        expected = ((33,) * 6 + (33, 60), ("33", "33"), ("", ""))
        found = (ids, fs, capabilities)
        return "ok" if found == expected else repr(found)

    return respond


def partly():
    """Drops root, and can come back to it."""
    os.setresuid(33, 33, 0)
    return lambda _: "ok"


def fsuid():
    """Uses files as another user."""
    libc.setfsuid(33)
    return lambda _: "ok"


def zombies():
    """Leaves ended children uncollected: one of its own, one of a child's."""

    def ended(status):
        child = os.fork()
        if child == 0:
            os._exit(status)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        return child

    own = ended(7)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        grandchild = ended(8)
        theirs.send(b"ready")
        theirs.recv(1)
        theirs.send(bytes([os.waitpid(grandchild, os.WNOHANG)[1] >> 8]))
        os._exit(0)
    ours.recv(5)
    collected = []

    def respond(_):
        if not collected:
            collected.append(os.waitpid(own, os.WNOHANG))
            ours.send(b"?")
            collected.append(ours.recv(1))
            os.waitpid(child, 0)
        return "ok" if collected == [(own, 7 << 8), b"\x08"] else repr(collected)

    return respond


def late():
    """Listens on the second port between listen and ready, on more at requests for /PORT."""
    first = listen()
    second = listen(int(sys.argv[3]))
    listeners = [first, second]

    def respond(path):
        if path != "/":
            listeners.append(listen(int(path[1:])))
        return "ok"

    while True:
        for listener in select.select(listeners, [], [])[0]:
            connection, _ = listener.accept()
            answer(connection, respond)


# Descriptors


def deleted():
    """Has a deleted file open and another one mapped."""
    file, mapped = open("deleted", "w+b", buffering=0), open("mapped", "w+b", buffering=0)
    for each in (file, mapped):
        each.write(b"content")
        os.unlink(each.name)
    memory = mmap.mmap(mapped.fileno(), 7)
    mapped.close()

    def respond(_):
        found = os.pread(file.fileno(), 7, 0), memory[:]
        file.write(b".")
        return "ok" if found == (b"content",) * 2 else repr(found)

    return respond


def linked():
    """Has a deleted file open that has another name left."""
    file = open("linked", "w+b", buffering=0)
    os.link("linked", "other")
    os.unlink("linked")
    return lambda _: "ok" if os.fstat(file.fileno()).st_nlink else "gone"


def folder():
    """Works in a deleted folder."""
    os.mkdir("folder")
    os.chdir("folder")
    os.rmdir("../folder")
    return lambda _: "ok" if os.readlink("/proc/self/cwd").endswith("(deleted)") else os.getcwd()


def big():
    """Has a deleted file open that is too big to be carried."""
    file = open("big", "w+b", buffering=0)
    os.posix_fallocate(file.fileno(), 0, 65 << 20)
    os.unlink("big")
    return lambda _: "ok" if os.fstat(file.fileno()).st_size else "empty"


def memfd():
    """Has memory files: mapped, and sealed."""
    mapped = os.memfd_create("mapped")
    os.write(mapped, b"content")
    os.ftruncate(mapped, 4096)
    memory = mmap.mmap(mapped, 4096)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(sealed, b"content")
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, seals)

    def respond(_):
        os.pwrite(mapped, b"C", 0)
        read = memory[:7], os.pread(mapped, 7, 0), os.pread(sealed, 7, 0)
        if read != (b"Content", b"Content", b"content"):
            return repr(read)
        try:
            os.pwrite(sealed, b"C", 0)
            return "written"
        except PermissionError:
            found = fcntl.fcntl(sealed, fcntl.F_GET_SEALS)
            return "ok" if found == seals else f"seals {found}"

    return respond


def timer():
    """Is signalled by an interval timer."""
    count = 0

    def ring(*_):
        nonlocal count
        count += 1

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

    def respond(_):
        before = count
        return "ok" if eventually(lambda: count > before) else "no signal"

    return respond


def timerfd():
    """Waits for timers by descriptors: one that rings often, one in an hour."""

    def create(first, interval):
        fd = must(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK))
        times = (int(interval), int(interval % 1 * 1e9), int(first), int(first % 1 * 1e9))
        must(libc.timerfd_settime(fd, 0, struct.pack("4q", *times), None))
        return fd

    often, far = create(0.05, 0.05), create(3600, 0)

    def respond(_):
        for _ in range(2):
            if not select.select([often], [], [], 10)[0]:
                return "no tick"
            os.read(often, 8)
        left = ctypes.create_string_buffer(32)
        must(libc.timerfd_gettime(far, left))
        seconds = struct.unpack("4q", left.raw)[2]
        return "ok" if 3000 < seconds < 3600 else f"{seconds} s left"

    return respond


def signalfd():
    """Takes signals from a descriptor, one of them sent before it listens."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    mask = struct.pack("Q", 1 << (signal.SIGUSR1 - 1)) + bytes(120)
    fd = must(libc.signalfd(-1, mask, 0))
    os.kill(os.getpid(), signal.SIGUSR1)

    def respond(_):
        first = struct.unpack_from("I", os.read(fd, 128))[0]
        os.kill(os.getpid(), signal.SIGUSR1)
        return "ok" if first == signal.SIGUSR1 else f"signal {first}"

    return respond


def eventfd():
    """Has a counter in a descriptor."""
    fd = os.eventfd(7)

    def respond(_):
        count = os.eventfd_read(fd)
        os.eventfd_write(fd, 7)
        return "ok" if count == 7 else str(count)

    return respond


def inotify():
    """Watches a folder."""
    os.mkdir("watched")
    created, one = 0x100, os.O_NONBLOCK
    fd = must(libc.inotify_init1(one))
    must(libc.inotify_add_watch(fd, b"watched", created))

    def respond(_):
        name = f"watched/{os.urandom(4).hex()}"
        open(name, "w").close()
        os.unlink(name)
        event = os.read(fd, 4096)
        return "ok" if os.path.basename(name).encode() in event else repr(event)

    return respond


def terminal():
    """Has a child at a terminal of its own."""
    child, master = pty.fork()
    if child == 0:
        for line in sys.stdin:
            print("heard", line, end="", flush=True)
        os._exit(0)

    def respond(_):
        os.write(master, b"hello\n")
        heard = b""
        while b"heard hello" not in heard:
            if not select.select([master], [], [], 10)[0]:
                return repr(heard)
            heard += os.read(master, 4096)
        return "ok"

    return respond


def locks():
    """Holds a lock by flock(2) and one by fcntl(2)."""
    whole, part = open("flock", "w"), open("fcntl", "w")
    fcntl.flock(whole, fcntl.LOCK_EX)
    fcntl.lockf(part, fcntl.LOCK_EX)
    return lambda _: "ok" if whole and part else ""


respond = globals()[kind]()
serve(listen(), respond)
