"""Copies the images of a compressed archive, which can only be read from its beginning, to files.

A gzip is streamed once. Its images, as stored, go into a *spool*: files of at most 1 GiB, by
default beside the destination, from which they are then read in any order, and which are removed
when the shards are complete. The spool takes the space of the images once more; memory stays small.
"""

import contextlib
import fcntl
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.archives import SYNSET_TAR, Collector, Listed, Listing, take
from data_tools.progress import progress_bar
from data_tools.sources import Skipped
from data_tools.tars import Extent, Member, StreamExtent, walk
from pretrain.errors import DataError
from pretrain.files import read_json, replace_text

_SPOOL_FILE_BYTES = 2**30
_LISTING_FILE = "listing.npz"
_MARK_FILE = "listing.json"
_LOCK_FILE = ".lock"


def list_gzip(archive: Path, spool: Path) -> Listing:
    """Copy the images of a gzip-compressed tar into a spool, or find them there.

    Args:
        archive: the file.
        spool: directory for them; it is made. It needs the space of the archive's images.

    Raises:
        DataError: the archive is damaged, cut short or holds what is refused; the spool cannot be
            written or is in use.
    """
    try:
        state = archive.stat()
        identity = {"archive": str(archive.absolute()), "bytes": state.st_size}
        identity["modified"] = state.st_mtime_ns
        with _locked(spool):
            listing = _spooled(spool, identity)
            if listing is None:
                _clear(spool)
                with archive.open("rb") as file:
                    listing = _fill_spool(archive, file, spool, state.st_size)
                _keep(spool, identity, listing)
            return listing
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive}: damaged or cut short: {error}; fetch it again or compare its checksum "
            "with the published one"
        ) from None
    except OSError as error:
        raise DataError(f"{error.filename or spool}: {error.strerror}") from None


class _SpoolWriter:
    """Appends images to spool files of bounded size."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._number = -1
        self._file: BinaryIO | None = None

    def append(self, extent: Extent, size: int) -> tuple[Path, int]:
        """Copy the next bytes of an extent; returns where they lie now."""
        if self._file is None or self._file.tell() + size > _SPOOL_FILE_BYTES:
            self.close()
            self._number += 1
            self._file = self.path.open("wb")
        offset = self._file.tell()
        data = extent.read(size)
        if len(data) < size:
            raise EOFError("the archive ends inside an image")
        self._file.write(data)
        return self.path, offset

    @property
    def path(self) -> Path:
        return self._directory / f"images-{self._number:06d}.spool"

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _fill_spool(archive: Path, file: BinaryIO, spool: Path, size: int) -> Listing:
    collector, writer = Collector(), _SpoolWriter(spool)
    with (
        gzip.GzipFile(fileobj=file) as plain,
        progress_bar(f"reading {archive.name}", size, in_bytes=True) as advance,
        contextlib.closing(writer),
    ):
        read = 0
        outer = StreamExtent(plain)
        for member in walk(outer, str(archive)):
            folder, _, name = member.name.rpartition("/")
            inner = SYNSET_TAR.fullmatch(name)
            if inner is None:
                _spool_member(collector, writer, outer, member, folder.rpartition("/")[2])
            else:
                part = outer.inner(member.bytes)
                for image in walk(part, f"{archive}: {name}", must_end=False):
                    _spool_member(collector, writer, part, image, inner[1])
            advance(file.tell() - read)
            read = file.tell()
        while plain.read(2**20):  # to the checksum at the very end
            pass
    return collector.flush()


def _spool_member(
    collector: Collector, writer: _SpoolWriter, extent: Extent, member: Member, wnid: str
) -> None:
    probe = Collector()
    if take(probe, member, wnid, Path(), 0):
        file, offset = writer.append(extent, member.bytes)
        collector.add(wnid, file, member.name.rpartition("/")[2], offset, member.bytes)
    collector.listing.skipped.extend(probe.listing.skipped)


@contextlib.contextmanager
def _locked(spool: Path) -> Iterator[None]:
    spool.mkdir(parents=True, exist_ok=True)
    lock = os.open(spool / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{spool}: another process is filling it; wait for it") from None
        yield
    finally:
        os.close(lock)


def _clear(spool: Path) -> None:
    for path in (*spool.glob("images-*.spool"), *spool.glob("listing.*")):
        path.unlink()


def remove_spool(spool: Path) -> None:
    """Remove what `list_gzip` put into a directory, and the directory if that leaves it empty."""
    if (spool / _LOCK_FILE).exists():
        _clear(spool)
        (spool / _LOCK_FILE).unlink()
        if not any(spool.iterdir()):
            spool.rmdir()


def _keep(spool: Path, identity: dict[str, object], listing: Listing) -> None:
    """Write down what the spool holds, last: an interrupted copy has no listing."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for i, part in enumerate(listing.images):
        arrays |= {f"n{i}": part.names, f"o{i}": part.offsets, f"s{i}": part.sizes}
    np.savez(spool / _LISTING_FILE, allow_pickle=False, **arrays)
    mark = {
        "identity": identity,
        "parts": [[part.wnid, part.file.name] for part in listing.images],
        "skipped": [[item.path, item.reason] for item in listing.skipped],
    }
    replace_text(spool / _MARK_FILE, json.dumps(mark))


def _spooled(spool: Path, identity: dict[str, object]) -> Listing | None:
    mark = read_json(spool / _MARK_FILE)
    if mark is None or mark["identity"] != identity:
        return None
    with np.load(spool / _LISTING_FILE, allow_pickle=False) as arrays:
        images = [
            Listed(wnid, spool / file, arrays[f"n{i}"], arrays[f"o{i}"], arrays[f"s{i}"])
            for i, (wnid, file) in enumerate(mark["parts"])
        ]
    return Listing(images, [Skipped(*item) for item in mark["skipped"]])
