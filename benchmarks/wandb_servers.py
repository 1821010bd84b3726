"""Servers on loopback in the place of Weights & Biases: one that keeps views, and broken ones."""

import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

API_KEY = "a" * 40
ENTITY = "somebody"


def environment(port: int) -> dict[str, str]:
    """What makes wandb take the server on that port for its own."""
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": API_KEY}


class FakeWandb:
    """Answers what wandb and wandb-workspaces send, and remembers views and rows of histories.

    Attributes:
        port: where it listens.
        projects: names of those there are.
        views: by id, the variables with which each was saved last.
        rows: of the histories of runs, in order of their coming.
        requests: (operation, variables) in order.
        dies: whether every connection is reset instead of being served.
        refusal: what every mutation is answered with; None serves them.
    """

    def __init__(self) -> None:
        self.projects: set[str] = set()
        self.views: dict[str, dict] = {}
        self.rows: list[dict] = []
        self.requests: list[tuple[str, dict]] = []
        self.dies = False
        self.refusal: str | None = None
        self._lock = threading.Lock()
        fake = self

        class Handler(_Handler):
            owner = fake

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        serve = partial(self._server.serve_forever, poll_interval=0.02)  # how long closing takes
        threading.Thread(target=serve, daemon=True).start()

    def operations(self) -> list[str]:
        """What was asked so far."""
        with self._lock:
            return [name for name, _ in self.requests]

    def answer(self, query: str, variables: dict) -> dict:
        """The answer to one request."""
        with self._lock:
            operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
            name = operation[1] if operation else query
            self.requests.append((name, variables))
            answers = {
                "UpsertView2": self._upsert_view,
                "upsertView": self._upsert_view,
                "ProjectViews": self._views,
                "View": self._views,
                "GetProjects": self._projects,
                "CreateProject": self._create_project,
                "RunResumeStatus": lambda _: {"model": None},
                "UpsertBucket": self._upsert_bucket,
                "CreateRunFiles": self._create_run_files,
            }
            if self.refusal is not None and query.strip().startswith("mutation"):
                return {"data": None, "errors": [{"message": self.refusal}]}
            data = answers[name](variables) if name in answers else {"viewer": VIEWER}
            return {"data": data}

    def _upsert_view(self, variables: dict) -> dict:
        identity = variables.get("id") or f"view{len(self.views)}"
        inserted = identity not in self.views
        self.views[identity] = variables
        project = {"id": "p", "name": variables["projectName"], "entityName": ENTITY}
        view = {**variables, "id": identity, "project": project}
        return {"upsertView": {"view": view, "inserted": inserted}}

    def _views(self, variables: dict) -> dict:
        if (variables.get("project") or variables.get("name")) not in self.projects:
            return {"project": None}
        nodes = [
            {**view, "id": identity}
            for identity, view in self.views.items()
            if view["type"] == variables.get("viewType", "runs")
            and variables.get("viewName") in (None, view["name"])
        ]
        edges = [{"node": node, "cursor": node["id"]} for node in nodes]
        page = {"hasNextPage": False, "endCursor": None}
        return {"project": {"allViews": {"edges": edges, "pageInfo": page}}}

    def _projects(self, variables: dict) -> dict:
        nodes = [
            {
                "id": name,
                "name": name,
                "entityName": ENTITY,
                "createdAt": "2026-01-01T00:00:00Z",
                "isBenchmark": False,
                "user": None,
            }
            for name in sorted(self.projects)
        ]
        edges = [{"node": node, "cursor": node["id"]} for node in nodes]
        page = {"hasNextPage": False, "endCursor": None}
        return {"models": {"edges": edges, "pageInfo": page}}

    def _create_project(self, variables: dict) -> dict:
        self.projects.add(variables["input"]["name"])
        return {"upsertModel": {"inserted": True}}

    def _upsert_bucket(self, variables: dict) -> dict:
        project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": "b", "name": variables["name"], "config": "{}", "project": project}
        bucket |= {"displayName": variables["displayName"], "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}

    def _create_run_files(self, variables: dict) -> dict:
        url = f"http://127.0.0.1:{self.port}/storage/"
        files = [{"name": name, "uploadUrl": url + name} for name in variables["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def take_rows(self, sent: dict) -> None:
        """Keep what a run's stream of files holds of its history."""
        history = (sent.get("files") or {}).get("wandb-history.jsonl") or {}
        with self._lock:
            self.rows += [json.loads(line) for line in history.get("content", [])]

    def close(self) -> None:
        """Listen no longer."""
        self._server.shutdown()
        self._server.server_close()


VIEWER = {
    "id": "v",
    "entity": ENTITY,
    "username": ENTITY,
    "email": None,
    "flags": None,
    "admin": False,
    "teams": {"edges": []},
    "apiKeys": {"edges": []},
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_PUT(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.owner.dies:
            self.close_connection = True
            _reset(self.connection)
            return
        answer = b"{}"
        if self.path.endswith("/graphql"):
            asked = json.loads(request)
            answered = self.owner.answer(asked["query"], asked.get("variables") or {})
            answer = json.dumps(answered).encode()
        elif self.path.endswith("/file_stream"):
            self.owner.take_rows(json.loads(request))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


FAULTS = ("refused", "hangs", "500", "401", "bytewise", "dies")
"""What a `FaultyServer` may do: refuse connections; accept and say nothing; answer each request
with a status; answer one byte a second; end the connection in the middle of each answer."""


class FaultyServer:
    """A server that answers no request well: it has one of `FAULTS`.

    Attributes:
        port: where it listens, or nobody does.
        requests: how many it has got, or connections where it reads nothing.
        released: set when it is to end.
    """

    def __init__(self, fault: str) -> None:
        self.requests = 0
        self.released = threading.Event()
        self._fault = fault
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        if fault == "refused":
            self._listening.close()
        else:
            threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let go of everybody who waits."""
        self.released.set()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if self._fault == "hangs":
                self.requests += 1
                self.released.wait()
            while not self.released.is_set() and _read_request(connection):
                self.requests += 1
                if not self._answer(connection):
                    return

    def _answer(self, connection: socket.socket) -> bool:
        """Say whether the connection may go on."""
        if self._fault in ("500", "401"):
            head = f"HTTP/1.1 {self._fault} No\r\nContent-Length: 2\r\n\r\n"
            connection.sendall(head.encode() + b"no")
            return True
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
        if self._fault == "bytewise":
            for byte in head + b" " * 999:
                connection.sendall(bytes([byte]))
                if self.released.wait(1.0):
                    break
        else:
            connection.sendall(head + b'{"data":')
            time.sleep(0.1)  # so that what was sent is not lost with the reset
            _reset(connection)
        return False


@contextmanager
def faulty(fault: str) -> Iterator[FaultyServer]:
    """A server with one of `FAULTS`."""
    with closing(FaultyServer(fault)) as server:
        yield server


def _reset(connection: socket.socket) -> None:
    """End a connection without an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _read_request(connection: socket.socket) -> bool:
    """Take one whole request; False at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(65536)
        if not got:
            return False
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    while length and len(body) < int(length[1]):
        body += connection.recv(65536)
    return True


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something that must come; the minute is for a machine that is busy."""
    ends = time.monotonic() + 60
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def processes_of(port: int) -> dict[int, str]:
    """The processes that were told of the server on that port, but for this one: their commands."""
    found = {}
    told = f"WANDB_BASE_URL=http://127.0.0.1:{port}\0".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if told in (path / "environ").read_bytes() and path.name != str(os.getpid()):
                command = (path / "cmdline").read_bytes().decode(errors="replace")
                if command:  # else it is dead and not yet collected
                    found[int(path.name)] = command
    return found
