"""A tiny OpenAI server, as a plain command: `python -m tests.e2e.openai_server PORT MODEL LOG`.

It writes each request to LOG, and "gone" when a client breaks off a stream. The prompt says what it
does: "hang" begins a stream and never ends it, "half" stops for ever within its third event, "torn"
ends the process there, in a stream whose end is the connection's, "die" ends the process, "error"
answers 500, "binary" streams bytes that are no events and stops likewise.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_, PORT, MODEL, LOG = sys.argv
HALF = b'data: {"choices":[{"te'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        """Say nothing."""

    def note(self, entry):
        with Path(LOG).open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def do_GET(self):
        if self.path == "/v1/models":
            cards = [{"id": name, "object": "model"} for name in (MODEL, "another")]
            self.answer(200, {"object": "list", "data": cards})
        else:
            self.note({"path": self.path, "headers": dict(self.headers.items()), "body": ""})
            self.answer(200 if self.path == "/health" else 404, {"path": self.path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.note({"path": self.path, "headers": dict(self.headers.items()), "body": body})
        request = json.loads(body)
        prompt = request.get("prompt", "")
        if prompt == "die":
            os._exit(3)
        if prompt == "error":
            self.answer(500, {"error": {"message": "no luck today", "type": "x", "code": 500}})
        elif prompt == "binary":
            self.begin("application/octet-stream")
            self.chunk(HALF)
            threading.Event().wait()
        elif prompt == "torn":
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(b'data: {"choices":[{"text":"1"}]}\n\n' + HALF)
            os._exit(3)
        elif request.get("stream"):
            self.stream(prompt)
        else:
            self.answer(200, {"choices": [{"text": f"echo {prompt}"}], "model": MODEL})

    def stream(self, prompt):
        self.begin("text/event-stream")
        try:
            number = 0
            while number < 3 or prompt == "hang":
                number += 1
                if number == 3 and prompt == "half":
                    self.chunk(HALF)
                    threading.Event().wait()
                self.chunk(b'data: {"choices":[{"text":"%d"}]}\n\n' % number)
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")
        except OSError:
            self.note("gone")
            self.close_connection = True

    def begin(self, content_type):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("x-upstream", "yes")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
