"""A small HTTP server that waits for connections in the way it is told to.

Usage: server.py WAIT PORT [LOG]     WAIT is accept, select, poll or epoll

It answers / with a greeting, /monotonic with its monotonic clock and /pid with its pid, writes
each request to LOG, tells of SIGHUP on standard output, and ends with status 7 on SIGUSR1.
"""

import os
import select
import signal
import socket
import sys
import time

wait, port = sys.argv[1], int(sys.argv[2])
log = open(sys.argv[3], "a", buffering=1) if len(sys.argv) > 3 else None

signal.signal(signal.SIGHUP, lambda *_: print("got SIGHUP", flush=True))
signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))

listener = socket.create_server(("127.0.0.1", port))


def wait_by_epoll():
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    return epoll.poll


def wait_by_poll():
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return poll.poll


ANSWERS = {
    "/": lambda: "hello",
    "/monotonic": lambda: str(time.monotonic_ns()),
    "/pid": lambda: str(os.getpid()),
}
WAITS = {
    "accept": lambda: lambda: None,
    "select": lambda: lambda: select.select([listener], [], []),
    "poll": wait_by_poll,
    "epoll": wait_by_epoll,
}
wait_for_connection = WAITS[wait]()
print("listening", flush=True)
while True:
    wait_for_connection()
    connection, _ = listener.accept()
    with connection:
        path = connection.recv(65536).decode().split(" ")[1]
        if log:
            print(path, file=log)
        print("request for", path, flush=True)
        body = ANSWERS[path]().encode() + b"\n"
        head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
