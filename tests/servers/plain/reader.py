"""A server that answers with a file that it has read when it started.

Arguments: the port or the path of the socket to listen at, and the file.
"""

import http.server
import os
import socket
import socketserver
import sys

place, file = sys.argv[1:3]
text = open(file, "rb").read()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass

    def address_string(self):
        return "client"


class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass


if "/" in place:
    # As php-fpm looks.
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(place) == 0:
            sys.exit("another one serves it")
    if os.path.exists(place):
        os.unlink(place)
    server = Unix(place, Handler)
else:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(place)), Handler)
print("started", flush=True)
server.serve_forever()
