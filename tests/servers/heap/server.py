"""A server with a large heap: 700 MB of small objects, as a cache or a model that is loaded at the
start. Usage: server.py PORT [MB]"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

MEGABYTES = int(sys.argv[2]) if len(sys.argv) > 2 else 700
CACHE = {number: bytes(1000) for number in range(900 * MEGABYTES)}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{len(CACHE)} entries\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
