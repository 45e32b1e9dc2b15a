"""Records what a client and a server say to each other: one JSON line an exchange, for tests that replay it.

record.py --upstream http://127.0.0.1:PORT [--port P] [--name NAME] --client CLIENT --out FILE

Prints its own URL, and passes everything on as it comes, until it is killed. What was asked before, word for word, is not
written again, nor of a request's head what is secret or changes from run to run or from machine to machine.
"""

import argparse
import contextlib
import http.client
import json
import select
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# What a connection is about, not a request; and what tells of the machine.
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
LEFT_OUT = HOP | {"authorization", "content-length", "cookie", "date", "host", "traceparent", "tracestate"}
LARGEST = 1 << 20


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def pass_on(self):
        body = self.body()
        upstream = http.client.HTTPConnection(args.host, args.upstream_port, timeout=600)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP | {"content-length"}:
                upstream.putheader(name, value)
        if body or self.command == "POST":
            upstream.putheader("Content-Length", str(len(body)))
        try:
            upstream.endheaders(body)
        except OSError:
            # Refused before all of it was read: the answer may be there all the same.
            pass
        said, answer, complete, over = b"", None, False, threading.Event()
        threading.Thread(target=self.watch, args=(upstream.sock, over), daemon=True).start()
        try:
            answer = upstream.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in HOP:
                    self.send_header(name, value)
            length = 0 if self.command == "HEAD" else answer.getheader("Content-Length")
            if length is None:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while part := answer.read1(65536):
                said += part
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if length is None else part)
            complete = length is None or len(said) >= int(length)
            if length is None:
                self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            over.set()
            upstream.close()
        if answer:
            answer.close()
            if len(body) <= LARGEST:
                # Some clients leave at the last event, before the last of its bytes.
                self.record(body, answer, said.decode(errors="replace"), not complete and b"data: [DONE]" not in said)

    def watch(self, upstream: socket.socket, over: threading.Event):
        """Ends what is under way upstream when the client goes away."""
        with contextlib.suppress(OSError):
            while not over.is_set() and not select.select([self.connection], [], [], 0.02)[0]:
                pass
            if not over.is_set() and not self.connection.recv(1, socket.MSG_PEEK):
                upstream.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = pass_on

    def record(self, body: bytes, answer: http.client.HTTPResponse, said: str, cut: bool):
        kind = answer.getheader("Content-Type") or ""
        try:
            request = json.loads(body) if body else None
        except ValueError:
            request = body.decode(errors="replace")
        events = kind.startswith("text/event-stream")
        line = {"client": args.client} | ({"name": args.name} if args.name else {})
        line |= {"method": self.command, "path": self.path}
        # This proxy's own port is another one every time.
        names = {n.lower(): v.replace(f":{server.server_address[1]}", "") for n, v in self.headers.items()}
        line["headers"] = {n: v for n, v in sorted(names.items()) if n not in LEFT_OUT and not n.startswith("x-stainless-")}
        line["request"] = request
        asked = json.dumps(line)
        line |= {"status": answer.status, "content_type": kind}
        line["response"] = [l[6:] for l in said.split("\n") if l.startswith("data: ")] if events else said
        # Set where the client went away before the end.
        line |= {"cut": True} if cut else {}
        with lock:
            if asked in written:
                return
            written.add(asked)
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


parser = argparse.ArgumentParser()
parser.add_argument("--upstream", required=True)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--out", required=True)
parser.add_argument("--client", required=True)
parser.add_argument("--name")
args = parser.parse_args()
args.host, args.upstream_port = urlsplit(args.upstream).hostname, urlsplit(args.upstream).port or 80
lock, written = threading.Lock(), set()
out = open(args.out, "a", encoding="utf-8")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = Server(("127.0.0.1", args.port), Proxy)
print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
