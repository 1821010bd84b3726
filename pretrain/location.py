"""Where a shard set lies: in a directory, on a server, in a bucket, behind a command. No torch.

A remote set is named by the URL of the folder that holds its ``manifest.json``: ``https://``,
``http://``, or whatever else fsspec has a file system for (``s3://``, ``gs://``, ``file://``, …).
``pipe:COMMAND {file}`` names it by the command that writes one of its files to standard output.
"""

import hashlib
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

PIPE = "pipe:"
_FILE = "{file}"
PASSWORD_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/@]*:[^\s/@]+@")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(where: str | Path) -> bool:
    """Whether this names a remote set rather than a directory."""
    text = str(where)
    return text.startswith(PIPE) or _SCHEME.match(text) is not None


def is_pipe(where: str | Path) -> bool:
    """Whether this names a command."""
    return str(where).startswith(PIPE)


def fault_of(url: str, *, allow_pipe: bool) -> str | None:
    """What is wrong with the name of a remote set, None if nothing is. Looks at the text alone."""
    if is_pipe(url):
        if not allow_pipe:
            return f"{url}: runs a command for every file; data.allow_pipe=true permits it"
        try:
            words = shlex.split(url.removeprefix(PIPE))
        except ValueError as error:
            return f"{url}: cannot be split into words: {error}"
        if any(PASSWORD_IN_URL.search(word) for word in words):
            return (
                "pipe: holds a URL with a password, which would be written into configs and logs; "
                "let the command read it from a file"
            )
        if not words or _FILE in words[0] or not any(_FILE in word for word in words):
            return f"{url}: expected pipe:COMMAND with {_FILE} among its words"
        return None
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 # raises if it is no number
    except ValueError as error:
        return f"{shown(url)}: not a URL: {error}"
    if parts.scheme in ("http", "https") and not parts.hostname:
        return f"{url}: no host; expected {parts.scheme}://HOST/FOLDER"
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        return (
            f"{shown(url)}: holds a user or password, which would be written into configs and "
            "logs; put them into ~/.netrc"
        )
    if PASSWORD_IN_URL.match(url):
        return (
            f"{shown(url)}: holds a password, which would be written into configs and logs; put it "
            "where the file system of the scheme looks for it, such as ~/.aws/credentials"
        )
    return None


def shown(url: str) -> str:
    """The URL for people: without passwords and query, which may be a signature."""
    if is_pipe(url):
        return url
    parts = _SCHEME.match(url) and url.partition("?")
    if not parts:
        return url
    scheme, _, rest = parts[0].partition("://")
    host, slash, path = rest.partition("/")
    query = "?…" if parts[2] else ""
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{query}"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a remote set.

    Attributes:
        base: what names the set, as `is_remote` takes it.
        name: the file's name in it.
    """

    base: str
    name: str

    def __str__(self) -> str:
        return shown(self.base if is_pipe(self.base) else self.url).replace(_FILE, self.name)

    @property
    def url(self) -> str:
        """Where it is; a query of the base, such as a signature, stays behind the path."""
        if not self.base.startswith(("http://", "https://")):
            return f"{self.base.rstrip('/')}/{self.name}"
        parts = urlsplit(self.base)
        path = f"{parts.path.rstrip('/')}/{quote(self.name)}"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def words(self) -> list[str]:
        """The command that writes it, word by word; no shell ever sees them."""
        words = shlex.split(self.base.removeprefix(PIPE))
        return [word.replace(_FILE, self.name) for word in words]


def cache_directory(configured: str | None) -> Path:
    """Where this node keeps what it fetched: a directory of its own, so that nothing else can go.

    Args:
        configured: the directory to make it in; null takes that for temporary files (``TMPDIR``).
    """
    parent = tempfile.gettempdir() if configured is None else configured
    return Path(parent).expanduser().absolute() / f"swin-pretrain-cache-{os.getuid()}"


def set_directory(cache: Path, url: str, manifest_sha256: str) -> Path:
    """Where the files of a remote set are kept: apart for every URL and every manifest.

    The manifest's digest covers those of all files, so other bytes at the same URL never meet.
    """
    base = url if is_pipe(url) else url.rstrip("/")
    key = hashlib.sha256(f"{base}\0{manifest_sha256}".encode()).hexdigest()[:24]
    words = re.findall(r"[A-Za-z0-9._-]+", "" if is_pipe(url) else shown(url).partition("?")[0])
    return cache / f"{words[-1][:60].lstrip('.-') if words else 'set'}-{key}"
