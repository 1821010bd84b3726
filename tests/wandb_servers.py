"""Servers on loopback in the place of Weights & Biases: one that keeps views, and broken ones."""

import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

API_KEY = "a" * 40
ENTITY = "somebody"


def environment(port: int) -> dict[str, str]:
    """What makes wandb take the server on that port for its own."""
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": API_KEY}


class FakeWandb:
    """Answers the GraphQL that wandb and wandb-workspaces send, and remembers views.

    Attributes:
        port: where it listens.
        projects: names of those there are.
        views: by id, the variables with which each was saved last.
        requests: (operation, variables) in order.
        refusal: what every mutation is answered with; None serves them.
    """

    def __init__(self) -> None:
        self.projects: set[str] = set()
        self.views: dict[str, dict] = {}
        self.requests: list[tuple[str, dict]] = []
        self.refusal: str | None = None
        self._lock = threading.Lock()
        fake = self

        class Handler(_Handler):
            owner = fake

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

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

    def close(self) -> None:
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

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FakeWandb
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = b"{}"
        if self.path.endswith("/graphql"):
            asked = json.loads(request)
            answered = self.owner.answer(asked["query"], asked.get("variables") or {})
            answer = json.dumps(answered).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


FAULTS = ("refused", "hangs", "500", "401", "bytewise", "dies")
"""What `faulty` can do: refuse connections; accept and say nothing; answer each request with a
status; answer one byte a second; end the connection in the middle of each answer."""


@contextmanager
def faulty(fault: str) -> Iterator[int]:
    """A server that answers no request well; yields its port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listening.getsockname()[1]
    released = threading.Event()
    if fault == "refused":
        listening.close()
    else:
        arguments = (listening, fault, released)
        threading.Thread(target=_accept, args=arguments, daemon=True).start()
    try:
        yield port
    finally:
        released.set()
        listening.close()


def _accept(listening: socket.socket, fault: str, released: threading.Event) -> None:
    with suppress(OSError):  # closed
        while True:
            connection, _ = listening.accept()
            arguments = (connection, fault, released)
            threading.Thread(target=_serve, args=arguments, daemon=True).start()


def _serve(connection: socket.socket, fault: str, released: threading.Event) -> None:
    with connection, suppress(OSError):
        if fault == "hangs":
            released.wait()
        while not released.is_set() and _read_request(connection):
            if fault in ("500", "401"):
                connection.sendall(f"HTTP/1.1 {fault} No\r\nContent-Length: 2\r\n\r\nno".encode())
                continue
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
            )
            if fault == "bytewise":
                for byte in head + b'{"data": {"viewer":' + b" " * 999:
                    connection.sendall(bytes([byte]))
                    if released.wait(1.0):
                        return
            connection.sendall(head + b'{"data":')
            linger = struct.pack("ii", 1, 0)  # a reset rather than an orderly end
            time.sleep(0.1)  # so that what was sent is not lost with it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return


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
