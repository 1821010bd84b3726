"""A real nginx, a proxy before it that breaks transfers as scripted, and configs to read them."""

import http.client
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pretrain.config.schema import DataConfig
from pretrain.data.manifest import Manifest, read_manifest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONF = """\
daemon off;
master_process off;
pid {run}/nginx.pid;
error_log {run}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {run}/access.log;
    client_body_temp_path {run}/body;
    proxy_temp_path {run}/proxy;
    fastcgi_temp_path {run}/fastcgi;
    uwsgi_temp_path {run}/uwsgi;
    scgi_temp_path {run}/scgi;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port}{tls};
        root {root};
        location /private/ {{ auth_basic "private"; auth_basic_user_file {run}/users; }}
        location /forbidden/ {{ return 403; }}
    }}
}}
"""
TLS = """ ssl;
        ssl_certificate {run}/cert.pem;
        ssl_certificate_key {run}/key.pem"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def nginx(root: Path, run: Path, *, tls: bool = False) -> Iterator[int]:
    """Serve a directory; yields the port."""
    if NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    port = free_port()
    run.mkdir(exist_ok=True)
    (run / "users").write_text("reader:{PLAIN}secret\n")
    listen = TLS.format(run=run) if tls else ""
    (run / "nginx.conf").write_text(CONF.format(run=run, root=root, port=port, tls=listen))
    command = [NGINX, "-e", f"{run}/error.log", "-p", str(run), "-c", f"{run}/nginx.conf"]
    process = subprocess.Popen(command)
    try:
        for _ in range(200):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (run / "error.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Fault:
    """What happens to one transfer.

    Attributes:
        kind: status, reset, stall, short, wrong, ignore_range, older, slow or wait.
        number: the status; else after how many bytes of the answer.
    """

    kind: str
    number: int = 0


class Proxy:
    """Forwards to nginx; each request of a file meets the next of its faults.

    Attributes:
        requests: of each file, the headers ``Range`` and ``If-Range`` of each request.
        faults: of each file, what is still to happen.
        always: of each file, what happens when nothing is left in ``faults``.
    """

    def __init__(self, upstream_port: int):
        self.requests: dict[str, list[tuple[str | None, str | None]]] = defaultdict(list)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.upstream_port = upstream_port
        self.released = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        serve = partial(self._server.serve_forever, poll_interval=0.02)  # how long closing takes
        threading.Thread(target=serve, daemon=True).start()

    def next_fault(self, name: str, headers: http.client.HTTPMessage) -> Fault | None:
        with self._lock:
            self.requests[name].append((headers["Range"], headers["If-Range"]))
            waiting = self.faults[name]
            return waiting.pop(0) if waiting else self.always.get(name)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        fault = self.owner.next_fault(self.path.rpartition("/")[2], self.headers) or Fault("none")
        if fault.kind == "status":
            self.send_response(fault.number)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status, headers, body = self._upstream(keep_range=fault.kind != "ignore_range")
        if fault.kind == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault.kind == "older":
            headers["ETag"], body = '"older"', b"x" * len(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(fault, body)

    def _send(self, fault: Fault, body: bytes) -> None:
        if fault.kind in ("none", "wrong", "ignore_range"):
            self.wfile.write(body)
            return
        if fault.kind == "slow":  # an eighth at a time
            step = len(body) // 8 + 1
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                time.sleep(0.1)
            return
        self.wfile.write(body[: fault.number])
        self.wfile.flush()
        if fault.kind == "stall":
            self.owner.released.wait(60)
        if fault.kind == "wait":
            self.owner.released.wait(60)
            self.wfile.write(body[fault.number :])
        if fault.kind in ("reset", "older"):
            time.sleep(0.1)  # so that what was sent is not lost with the reset
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _upstream(self, *, keep_range: bool) -> tuple[int, dict[str, str], bytes]:
        names = ("Range", "If-Range") if keep_range else ()
        headers = {name: self.headers[name] for name in names if self.headers[name]}
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream_port)
        try:
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            kept = ("Content-Length", "Content-Range", "ETag", "Last-Modified")
            return answer.status, {n: answer.headers[n] for n in kept if answer.headers[n]}, body
        finally:
            connection.close()


def config_of(url: str, cache: Path, **fields) -> DataConfig:
    """A config with short deadlines."""
    deadlines = {"remote_stall_seconds": 2.0, "remote_retry_seconds": 2.0}
    return DataConfig(path=url, cache_dir=str(cache), **(deadlines | fields))


def manifest_of(data: DataConfig) -> Manifest:
    return read_manifest(data.path, cache_dir=data.cache_dir, allow_pipe=data.allow_pipe)
