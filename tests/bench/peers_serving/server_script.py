"""A server process for the tests of the comparison: `python server_script.py PORT [FAULT]`.

Every token takes a millisecond, a prompt a millisecond for each eight tokens that were not in an
earlier prompt's beginning.  FAULT: "dies" before it listens, "refuses" every request, "short"
answers, "slow" to load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULT = sys.argv[2] if len(sys.argv) > 2 else ""
SEEN: set[tuple[int, ...]] = set()
BEGUN = time.perf_counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "slow" and time.perf_counter() - BEGUN < 0.3:
            return self.plain(503, {"error": {"message": "loading"}})
        if FAULT == "refuses":
            return self.plain(400, {"error": {"message": "no"}})
        prompt, count = fields["prompt"], fields["max_tokens"]
        if not fields.get("stream"):
            return self.plain(200, {"choices": [{"text": "x" * count}]})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ids = tuple(prompt)
        known = max((n for n in range(len(ids) + 1) if ids[:n] in SEEN), default=0)
        time.sleep((len(ids) - known) / 8000)
        SEEN.update(ids[:n] for n in range(1, len(ids) + 1))
        count -= FAULT == "short"
        for i in range(count):
            time.sleep(0.001)
            self.event({"choices": [{"text": f" {i}", "finish_reason": None}]})
        self.event({"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": len(ids), "completion_tokens": count}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"0\r\n\r\n")

    def event(self, document: Any) -> None:
        data = b"data: " + json.dumps(document).encode() + b"\n\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def plain(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


if FAULT == "dies":
    sys.exit(3)
ThreadingHTTPServer.daemon_threads = True
# A server may be several processes.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
