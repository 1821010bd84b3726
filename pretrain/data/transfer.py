"""A program of its own: writes a remote file to standard output, from some byte on.

`pretrain.data.remote` starts it for every transfer. A process can be killed whatever it waits for
(name lookup, handshake, headers, a file system of fsspec's that knows no deadlines), and nothing of
it is inherited by processes that fork. It is run by its path and imports nothing of this project.

Standard input: one JSON object: ``url``; ``start``, the first byte wanted; ``etag`` of the bytes
already there, or null; ``timeout_seconds`` for each answer of the server. Standard output: one line
of JSON (``start``, where the bytes that follow begin: 0 instead of what was wanted where the file
has changed or the server cannot begin in the middle; ``bytes`` of the whole file and its ``etag``,
both null if unknown), then the bytes. Exit code 0: all was written; 3: worth another try; 4: not.
The last line on standard error says why.
"""

import ctypes
import http.client
import json
import netrc
import re
import signal
import socket
import ssl
import sys
import urllib.error
import urllib.request
from typing import BinaryIO
from urllib.parse import urlsplit

WORTH_ANOTHER_TRY, FINAL = 3, 4
_CHUNK_BYTES = 2**20
_FSSPEC_CHUNK_BYTES = 8 * 2**20
_PR_SET_PDEATHSIG = 1
_PASSING = {408, 425, 429}


class TransferError(Exception):
    """Why there are no (more) bytes, and whether trying again can help."""

    def __init__(self, reason: str, *, final: bool):
        super().__init__(reason)
        self.final = final


def main() -> int:
    """Serve the one request on standard input; returns the exit code."""
    # Whoever starts it may be killed; then nobody is left to watch over its waits.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    request = json.load(sys.stdin)
    send = send_http if request["url"].startswith(("http://", "https://")) else send_fsspec
    try:
        send(request["url"], request["start"], request["etag"], request["timeout_seconds"])
        sys.stdout.buffer.flush()
    except TransferError as error:
        reason = " ".join(str(error).split())[:400]
        sys.stderr.write(f"{reason}\n")
        return FINAL if error.final else WORTH_ANOTHER_TRY
    return 0


def _head(start: int, length: int | None, etag: str | None) -> BinaryIO:
    """Write the first line; returns where the bytes go."""
    line = json.dumps({"start": start, "bytes": length, "etag": etag})
    sys.stdout.buffer.write(line.encode() + b"\n")
    sys.stdout.buffer.flush()
    return sys.stdout.buffer


def send_http(url: str, start: int, etag: str | None, timeout_seconds: float) -> None:
    """Send a file from an HTTP server (RFC 9110: range requests, If-Range, entity tags).

    Raises:
        TransferError: with the server's status, or what happened to the connection.
    """
    request = _http_request(url, start, etag)
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:  # noqa: S310
            found = response.headers.get("ETag")
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            if response.status == 206:
                begin, total = _content_range(response.headers.get("Content-Range"))
                if begin == start and etag == found:
                    return _copy(response, _head(begin, total, found))
            else:
                return _copy(response, _head(0, total, found))
        # A part of another file than the one begun, or another part than asked for.
        return send_http(url, 0, None, timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return send_http(url, 0, None, timeout_seconds)
        passing = error.code >= 500 or error.code in _PASSING
        raise TransferError(f"{error.code} {error.reason}", final=not passing) from None
    except urllib.error.URLError as error:
        raise _connection_error(error.reason) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _connection_error(error) from None


def _copy(response: http.client.HTTPResponse, output: BinaryIO) -> None:
    while chunk := response.read1(_CHUNK_BYTES):
        output.write(chunk)


def _http_request(url: str, start: int, etag: str | None) -> urllib.request.Request:
    headers = {"Accept-Encoding": "identity", "User-Agent": "swin-pretrain"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag and not etag.startswith("W/"):  # weak ones are not allowed there
            headers["If-Range"] = etag
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        login = netrc.netrc().authenticators(urlsplit(url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        login = None
    if login is not None:
        from base64 import b64encode

        words = b64encode(f"{login[0]}:{login[2]}".encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {words}")
    return request


def _content_range(value: str | None) -> tuple[int, int | None]:
    """First byte (-1 where it is not said) and size of the whole file (if known)."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", value or "")
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _connection_error(reason: object) -> TransferError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return TransferError(
            f"its certificate is not trusted: {reason.verify_message}; SSL_CERT_FILE=FILE names "
            "certificates to trust",
            final=True,
        )
    if isinstance(reason, socket.gaierror):
        final = reason.errno == socket.EAI_NONAME
        return TransferError(f"its host cannot be found: {reason.strerror}", final=final)
    if isinstance(reason, TimeoutError):
        return TransferError("no answer in time", final=False)
    if isinstance(reason, http.client.InvalidURL | ValueError):
        return TransferError(str(reason), final=True)
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return TransferError(f"connection broken: {text}", final=False)


def send_fsspec(url: str, start: int, etag: str | None, timeout_seconds: float) -> None:
    """Send a file from any file system of fsspec's, in ranges.

    Raises:
        TransferError: what fsspec said, or what has to be installed.
    """
    try:
        import fsspec

        files, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise TransferError(
            f"{error}; `pip install -e '.[remote]'` installs what s3:// needs", final=True
        ) from None
    except ValueError as error:  # an unknown protocol
        raise TransferError(str(error), final=True) from None
    try:
        info = files.info(path)
        found = info.get("ETag") or info.get("etag") or files.ukey(path)
        begin = start if etag == found and start <= info["size"] else 0
        output = _head(begin, info["size"], found)
        for first in range(begin, info["size"], _FSSPEC_CHUNK_BYTES):
            end = min(first + _FSSPEC_CHUNK_BYTES, info["size"])
            # By name: backends put other arguments before these.
            output.write(files.cat_file(path, start=first, end=end))
    except FileNotFoundError:
        raise TransferError("not found", final=True) from None
    except PermissionError as error:
        raise TransferError(f"access denied: {error}", final=True) from None
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 # every backend has its own
        missing_login = type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError")
        raise TransferError(f"{type(error).__name__}: {error}", final=missing_login) from None


if __name__ == "__main__":
    sys.exit(main())
