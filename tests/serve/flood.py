"""Floods a port of the loopback with connections, and keeps them until it is killed.

Usage: flood.py KIND PORT COUNT

silent     they are made, and nothing is sent on them
hang-up    each is closed as soon as it is made
half-open  what the other end answers to the first packet is not seen: they are never made

It writes a line when it is done.
"""

import ctypes
import resource
import select
import signal
import socket
import struct
import sys
import time

SO_ATTACH_FILTER = 26
LIMIT = 30  # seconds

kind, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

# A program of socket(7) that takes no byte of any packet: `ret #0`.
take_nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
program = struct.pack("HP", 1, ctypes.addressof(take_nothing))


def begin():
    connection = socket.socket()
    connection.setblocking(False)
    if kind == "half-open":
        connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    connection.connect_ex(("127.0.0.1", port))
    return connection


def wait_until_made(connections):
    deadline = time.monotonic() + LIMIT
    poll = select.poll()
    waiting = {connection.fileno() for connection in connections}
    for number in waiting:
        poll.register(number, select.POLLOUT)
    while waiting and time.monotonic() < deadline:
        for number, _ in poll.poll(100):
            poll.unregister(number)
            waiting.remove(number)
    return len(connections) - len(waiting)


if kind == "hang-up":
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), LIMIT):
            pass
    made = count
else:
    kept = [begin() for _ in range(count)]
    made = wait_until_made(kept) if kind == "silent" else 0
print(made, flush=True)
signal.pause()
