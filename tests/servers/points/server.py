"""Servers for the capture points.

Usage: server.py KIND PORT...

  prefork PORT          listens, then forks two workers that accept
  vfork PORT            as above, with a program started in between (by posix_spawn)
  counting PORT         answers each request with its number; /500 with that status, /slow late
  early PORT            has a client of its own that connects before it accepts
  keeping PORT          never closes a connection
  shutting PORT         ends each connection, and never closes its descriptor
  two FIRST SECOND      listens on the first at once, and on the second later
  client PORT PEER      connects to PEER before it listens; answers whether it still is connected,
                        and connects anew if not
  lazy PORT             takes a while after it listens, and again for its first answer, a 404
  told PORT PEER        is connected to PEER until asked for /close; counts the SIGUSR1 it gets;
                        takes a secret from the header of /reload; tells all that at /;
                        /hangup closes the connection, and tells PEER
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time

kind, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]


def listen(port):
    return socket.create_server(("127.0.0.1", port))


def answer(connection, body, status="200 OK"):
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body.encode())


def serve(listener, respond, keep=None):
    while True:
        connection, _ = listener.accept()
        try:
            request = connection.recv(65536).decode()
        except OSError:
            request = ""
        if not request:
            connection.close()
            continue
        path = request.split(" ")[1]
        respond(connection, path if kind != "told" else request)
        if kind == "shutting":
            connection.shutdown(socket.SHUT_RDWR)
        if keep is None:
            connection.close()
        else:
            keep.append(connection)


def greet(connection, _):
    answer(connection, f"hello from {os.getpid()}")


def prefork():
    listener = listen(ports[0])
    if kind == "vfork":
        subprocess.run(["/bin/true"], check=True)
    for _ in range(2):
        if os.fork() == 0:
            serve(listener, greet)
    os.wait()


def counting():
    count = 0

    def respond(connection, path):
        nonlocal count
        count += 1
        if path == "/slow":
            time.sleep(0.05)
        answer(connection, str(count), "500 Broken" if path == "/500" else "200 OK")

    serve(listen(ports[0]), respond)


def two():
    first = listen(ports[0])
    poll = select.poll()
    poll.register(first, select.POLLIN)
    poll.poll(100)
    second = listen(ports[1])
    while True:
        for listener in select.select([first, second], [], [])[0]:
            connection, _ = listener.accept()
            connection.recv(65536)
            answer(connection, "hello")
            connection.close()


def client():
    def connect():
        return socket.create_connection(("127.0.0.1", ports[1]))

    peer = connect()

    def respond(connection, _):
        nonlocal peer
        try:
            peer.sendall(b"x")
            answer(connection, "still connected")
        except OSError:
            peer = connect()
            answer(connection, "connected anew")

    serve(listen(ports[0]), respond)


def lazy():
    listener = listen(ports[0])
    time.sleep(0.3)
    loaded = []

    def respond(connection, _):
        if not loaded:
            time.sleep(0.3)
            loaded.append(1)
        answer(connection, "nothing here", "404 Not Found")

    serve(listener, respond)


def told():
    peer = socket.create_connection(("127.0.0.1", ports[1]))
    signals, secret = [], "none"
    signal.signal(signal.SIGUSR1, lambda *_: signals.append(1))

    def respond(connection, request):
        nonlocal peer, secret
        method, path, _ = request.split(" ", 2)
        if path == "/close":
            peer.close()
            peer = None
        if path == "/hangup":
            peer.sendall(b"x")
            return
        if path == "/reload":
            lines = request.lower().splitlines()
            secrets = [line for line in lines if line.startswith("warmimg-env: secret=")]
            secret = method + ":" + (secrets[0].split("=")[1] if secrets else "none")
        connected = "connected" if peer else "alone"
        answer(connection, f"{connected}, {len(signals)} signals, {secret}")

    serve(listen(ports[0]), respond)


if kind in ("prefork", "vfork"):
    prefork()
elif kind == "counting":
    counting()
elif kind in ("keeping", "shutting"):
    serve(listen(ports[0]), greet, keep=[])
elif kind == "early":
    early = listen(ports[0])
    if os.fork() == 0:
        early.close()
        with socket.create_connection(("127.0.0.1", ports[0])) as other:
            os.setsid()
            os._exit(0)
    os.wait()
    serve(early, greet)
elif kind == "two":
    two()
elif kind == "client":
    client()
elif kind == "lazy":
    lazy()
elif kind == "told":
    told()
