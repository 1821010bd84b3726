"""Copies the images of a compressed archive, which can only be read from its beginning, to files.

A gzip is streamed once. Its images, as stored, go into a *spool*: files of at most 1 GiB, by
default beside the destination, from which they are then read in any order, and which are removed
when the shards are complete. The spool takes the space of the images once more; memory stays small.

The archive alone decides which image lies where in the spool. So a copy that was interrupted reads
the archive from its beginning again, but writes only the files that were not complete.
"""

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives import SYNSET_TAR, Collector, Home, Listed, Listing, home_of, take
from data_tools.names import Names
from data_tools.progress import progress_bar
from data_tools.sources import Skipped
from data_tools.staging import cannot_write, take_lock
from data_tools.tar_headers import Member
from data_tools.tars import Extent, StreamExtent, walk
from pretrain.errors import DataError
from pretrain.files import read_json, replace_text, sync

_SPOOL_FILE_BYTES = 2**30
_FORMAT = 2
_LISTING_FILE = "listing.bin"
_MARK_FILE = "listing.json"
_FINISHED_FILE = "finished.json"
_LOCK_FILE = ".lock"

Identity = dict[str, object]
"""Of an archive and of what is taken from it: a spool serves no other."""


def list_gzip(archive: Path, spool: Path, splits: Sequence[str] = ()) -> Listing:
    """Copy the images of a gzip-compressed tar into a spool, or find them there.

    Args:
        archive: the file.
        spool: directory for them; it is made. It needs the space of the archive's images.
        splits: as for `data_tools.archives.list_plain`.

    Raises:
        DataError: the archive is damaged, cut short or holds what is refused; the spool cannot be
            written or is in use.
    """
    try:
        state = archive.stat()
        identity: Identity = {"archive": str(archive.absolute()), "bytes": state.st_size}
        identity |= {"modified": state.st_mtime_ns, "splits": list(splits)}
        identity |= {"file_bytes": _SPOOL_FILE_BYTES, "format": _FORMAT}
        with _open_spool(spool):
            listing = _spooled(spool, identity)
            if listing is None:
                listing = _fill_spool(archive, spool, identity, splits)
                _keep(spool, identity, listing)
            return listing
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive}: damaged or cut short: {error}; fetch it again or compare its checksum "
            "with the published one"
        ) from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror}") from None


class _SpoolWriter:
    """Puts images one behind the other into files of bounded size.

    Files that an interrupted copy finished are left as they are.
    """

    def __init__(self, spool: Path, identity: Identity):
        self._spool = spool
        self._identity = identity
        self._finished = _finished(spool, identity)
        self._number = -1
        self._offset = 0
        self._file: FileIO | None = None

    def append(self, extent: Extent, size: int) -> tuple[Path, int]:
        """Copy the next bytes of an extent; returns where they lie now."""
        if self._number < 0 or self._offset + size > _SPOOL_FILE_BYTES:
            self.finish()
            self._number, self._offset = self._number + 1, 0
            if self._number >= len(self._finished):
                with _writing(self._spool):
                    self._file = self._path.open("wb", buffering=0)
        offset = self._offset
        if self._file is not None:
            data = extent.read(size)
            if len(data) < size:
                raise EOFError("the archive ends inside an image")
            with _writing(self._spool):
                _write_all(self._file, data)
        self._offset += size
        return self._path, offset

    def finish(self) -> None:
        """Have the file on the disk, and write down that it is whole."""
        if self._file is not None:
            with _writing(self._spool):
                os.fsync(self._file.fileno())
                self.close()
                self._finished.append(self._offset)
                mark = {"identity": self._identity, "bytes": self._finished}
                replace_text(self._spool / _FINISHED_FILE, json.dumps(mark))
        elif self._number >= 0 and self._finished[self._number] != self._offset:
            raise DataError(
                f"{self._path}: not what the archive gives; remove {self._spool} and begin anew"
            )

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return _spool_file(self._spool, self._number)


def _spool_file(spool: Path, number: int) -> Path:
    return spool / f"images-{number:06d}.spool"


def _finished(spool: Path, identity: Identity) -> list[int]:
    """Bytes of each file that an interrupted copy finished; everything else is removed."""
    mark = read_json(spool / _FINISHED_FILE) or {}
    kept: list[int] = []
    for number, size in enumerate(mark["bytes"] if mark.get("identity") == identity else []):
        path = _spool_file(spool, number)
        if not path.is_file() or path.stat().st_size != size:
            break
        kept.append(size)
    _clear(spool, {_FINISHED_FILE, *(_spool_file(spool, i).name for i in range(len(kept)))})
    return kept


def _write_all(file: FileIO, data: bytes) -> None:
    """Write without a buffer: what a full disk refuses would be tried again on closing."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _writing(spool: Path) -> Iterator[None]:
    """What goes wrong here is the spool's fault and not the archive's."""
    try:
        yield
    except OSError as error:
        raise cannot_write(spool, error) from None


def _fill_spool(archive: Path, spool: Path, identity: Identity, splits: Sequence[str]) -> Listing:
    collector, size = Collector(), archive.stat().st_size
    with (
        archive.open("rb") as file,
        gzip.GzipFile(fileobj=file) as plain,
        contextlib.closing(_SpoolWriter(spool, identity)) as writer,
        progress_bar(f"reading {archive.name}", size, in_bytes=True) as advance,
    ):
        read = 0
        outer = StreamExtent(plain)
        for member in walk(outer, str(archive)):
            folder, _, name = member.name.rpartition("/")
            inner, home = SYNSET_TAR.fullmatch(name), home_of(folder, splits, archive)
            if inner is not None and not splits:
                part = outer.inner(member.bytes)
                for image in walk(part, f"{archive}: {name}", must_end=False):
                    _spool_member(collector, writer, part, image, Home(inner[1]))
            elif home is not None:
                _spool_member(collector, writer, outer, member, home)
            advance(file.tell() - read)
            read = file.tell()
        while plain.read(2**20):  # to the checksum at the very end
            pass
        writer.finish()
    return collector.flush()


def _spool_member(
    collector: Collector, writer: _SpoolWriter, extent: Extent, member: Member, home: Home
) -> None:
    probe = Collector()
    if take(probe, home, member.name, member.bytes, Path(), 0):
        file, offset = writer.append(extent, member.bytes)
        collector.add(home, file, member.name.rpartition("/")[2], offset, member.bytes)
    collector.listing.skipped.extend(probe.listing.skipped)


@contextlib.contextmanager
def _open_spool(spool: Path) -> Iterator[None]:
    with _writing(spool):
        spool.mkdir(parents=True, exist_ok=True)
        lock = os.open(spool / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        take_lock(lock, f"{spool}: another process is filling it; wait for it")
        yield
    finally:
        os.close(lock)


def _clear(spool: Path, kept: Collection[str] = ()) -> None:
    ours = (*spool.glob("images-*.spool"), *spool.glob("listing.*"), *spool.glob("finished.*"))
    for path in ours:
        if path.name not in kept:
            path.unlink()


def remove_spool(spool: Path) -> None:
    """Remove what `list_gzip` put into a directory, and the directory if that leaves it empty."""
    if (spool / _LOCK_FILE).exists():
        _clear(spool)
        (spool / _LOCK_FILE).unlink()
        if not any(spool.iterdir()):
            spool.rmdir()


def _keep(spool: Path, identity: Identity, listing: Listing) -> None:
    """Write down what the spool holds, last."""
    parts: list[dict[str, object]] = []
    digest = hashlib.sha256()
    with _writing(spool):
        with (spool / _LISTING_FILE).open("wb", buffering=0) as file:
            for part in listing.images:
                names = part.names
                data = names.cores.tobytes() + part.offsets.tobytes() + part.sizes.tobytes()
                digest.update(data)
                _write_all(file, data)
                one = {"wnid": part.wnid, "file": part.file.name, "above": part.above}
                one |= {"head": names.head.decode(), "end": names.end.decode()}
                parts.append({**one, "cores": names.cores.dtype.str, "images": len(part.sizes)})
        sync(spool / _LISTING_FILE)
        skipped = [[item.path, item.reason] for item in listing.skipped]
        mark = {"identity": identity, "sha256": digest.hexdigest()}
        replace_text(spool / _MARK_FILE, json.dumps({**mark, "parts": parts, "skipped": skipped}))


def _spooled(spool: Path, identity: Identity) -> Listing | None:
    """What a complete spool holds; None where it is not complete."""
    mark = read_json(spool / _MARK_FILE)
    if mark is None or mark.get("identity") != identity or not (spool / _LISTING_FILE).is_file():
        return None
    data = (spool / _LISTING_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != mark["sha256"]:
        return None
    images: list[Listed] = []
    at = 0

    def array(dtype: str, count: int) -> NDArray[Any]:
        nonlocal at
        found = np.frombuffer(data, dtype, count, at)
        at += found.nbytes
        return found

    for part in mark["parts"]:
        count, file = part["images"], spool / part["file"]
        cores, offsets, sizes = (array(d, count) for d in (part["cores"], "<i8", "<u4"))
        names = Names(part["head"].encode(), cores, part["end"].encode())
        images.append(Listed(part["wnid"], file, part["above"], names, offsets, sizes))
    return Listing(images, [Skipped(*item) for item in mark["skipped"]])
