"""Lists the images of WordNet synsets in plain tars and in folders, class by class.

A tar is walked header by header, the tars in it at the same time by several processes; its images
are later read in place, by offset. Nothing is extracted. `data_tools.spool` does it for gzips.
"""

import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_tools.names import Names, shared
from data_tools.progress import progress_bar
from data_tools.raw import MAX_IMAGE_BYTES
from data_tools.sources import Skipped
from data_tools.tars import FileExtent, walk
from pretrain.errors import DataError

SYNSET = re.compile(r"n[0-9]{8}")
SYNSET_TAR = re.compile(r"(n[0-9]{8})\.tar")
_IMAGE = re.compile(r"(?:(n[0-9]{8})_[0-9]+|ILSVRC2012_val_[0-9]{8})\.(?:JPEG|jpeg|jpg|JPG)")
_PENDING_IMAGES = 100_000


@dataclass(frozen=True)
class Listed:
    """Images of one class in one archive or spool file.

    Attributes:
        wnid: the class.
        file: the archive they lie in.
        above: the folder that holds the folder of the class, where that tells splits apart.
        names: of the files, without folders, in the order of the archive.
        offsets: int64 [images].
        sizes: uint32 [images].
        deflated: uint32 [images], bytes an image takes there where it is compressed (as in zips),
            else 0; None where none is.
    """

    wnid: str
    file: Path
    above: str
    names: Names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    deflated: NDArray[np.uint32] | None = None


@dataclass(frozen=True)
class Listing:
    """What archives hold: images by class, and files that are none."""

    images: list[Listed]
    skipped: list[Skipped]


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip files do, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def list_plain(
    archives: Iterable[tuple[Path, str | None]], workers: int, splits: Sequence[str] = ()
) -> Listing:
    """List tar files that are not compressed.

    Args:
        archives: each with the class it is of; None where it holds several.
        workers: processes.
        splits: names of folders; where given, only what lies in class folders in them is listed,
            and says in which.

    Raises:
        DataError: an archive is missing, damaged, cut short or holds what is refused.
    """
    parts: list[_Part] = []
    listing = Listing([], [])
    for path, wnid in archives:
        try:
            size = path.stat().st_size
            if wnid is None:
                found, inner = _list_outer(path, size, splits)
                _extended(listing, [found])
                parts.extend(inner)
            else:
                parts.append(_Part(path, wnid, 0, size, must_end=True))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return _extended(listing, _in_processes(_list_part, parts, workers))


def list_folders(root: Path, wnids: Iterable[str], workers: int) -> Listing:
    """List folders of images that lie in ``root`` and are named by their class.

    Raises:
        DataError: a folder cannot be listed.
    """
    parts = [_Part(root / wnid, wnid, 0, 0, must_end=False) for wnid in wnids]
    return _extended(Listing([], []), _in_processes(_list_folder, parts, workers))


def _extended(listing: Listing, more: Iterable[Listing]) -> Listing:
    for found in more:
        listing.images.extend(found.images)
        listing.skipped.extend(found.skipped)
    return listing


@dataclass(frozen=True)
class Home:
    """Where a file of an archive belongs, by the folders it lies in.

    Attributes:
        wnid: name of its folder, perhaps a class.
        above: name of the folder that one lies in, where that tells splits apart; else empty.
    """

    wnid: str
    above: str = ""


def home_of(folder: str, splits: Sequence[str], archive: Path) -> Home | None:
    """The home of what lies in a folder of an archive; None where it was not asked for.

    Raises:
        DataError: it is another edition, whose splits would be thrown together.
    """
    parts = ["", *folder.split("/")]
    if not splits and parts[-2].startswith("imagenet21k_"):
        raise DataError(
            f"{archive}: holds {parts[-2]}/, so it is ImageNet-21K-P; build it with "
            "`python -m data_tools.build imagenet21kp`"
        )
    if not splits:
        return Home(parts[-1])
    return Home(parts[-1], parts[-2]) if parts[-2] in splits else None


class Collector:
    """Gathers the images of one archive; lists are turned into arrays now and then."""

    def __init__(self) -> None:
        self.listing = Listing([], [])
        self._pending: dict[tuple[str, Path, str], list[tuple[bytes, int, int, int]]]
        self._pending = defaultdict(list)
        self._count = 0

    def add(
        self, home: "Home", file: Path, name: str, offset: int, size: int, deflated: int = 0
    ) -> None:
        """Note an image."""
        entry = (name.encode(), offset, size, deflated)
        self._pending[home.wnid, file, home.above].append(entry)
        self._count += 1
        if self._count >= _PENDING_IMAGES:
            self.flush()

    def flush(self) -> Listing:
        """Everything noted so far."""
        for (wnid, file, above), entries in self._pending.items():
            names, offsets, sizes, deflated = zip(*entries, strict=True)
            packed = np.array(deflated, dtype=np.uint32) if any(deflated) else None
            places = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.uint32)
            self.listing.images.append(Listed(wnid, file, above, shared(names), *places, packed))
        self._pending.clear()
        self._count = 0
        return self.listing

    def skip(self, path: str, reason: str) -> None:
        """Note a file that is no image."""
        self.listing.skipped.append(Skipped(path, reason))


@dataclass(frozen=True)
class _Part:
    """One class's tar, possibly inside another."""

    file: Path
    wnid: str
    offset: int
    end: int
    must_end: bool


def _list_outer(path: Path, size: int, splits: Sequence[str]) -> tuple[Listing, list[_Part]]:
    collector, parts = Collector(), []
    with path.open("rb") as file:
        check_is_tar(path, file)
        extent = FileExtent(file.fileno(), 0, size)
        for member in walk(extent, str(path)):
            folder, _, name = member.name.rpartition("/")
            inner, home = SYNSET_TAR.fullmatch(name), home_of(folder, splits, path)
            if inner is not None and not splits:
                end = member.offset + member.bytes
                parts.append(_Part(path, inner[1], member.offset, end, must_end=False))
            elif home is not None:
                take(collector, home, member.name, member.bytes, path, member.offset)
    return collector.flush(), parts


def _in_processes(
    list_one: Callable[[_Part], Listing], parts: list[_Part], workers: int
) -> Iterator[Listing]:
    with progress_bar("listing", len(parts)) as advance:
        if workers == 1 or len(parts) < 2:
            for part in parts:
                yield list_one(part)
                advance(1)
            return
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, context) as pool:
            for found in pool.map(list_one, parts, chunksize=8):
                yield found
                advance(1)


def _list_part(part: _Part) -> Listing:
    collector = Collector()
    where = f"{part.file}: {part.wnid}.tar"
    try:
        with part.file.open("rb") as file:
            if part.must_end:
                check_is_tar(part.file, file)
            extent = FileExtent(file.fileno(), part.offset, part.end)
            for member in walk(extent, where, must_end=part.must_end):
                home = Home(part.wnid)
                take(collector, home, member.name, member.bytes, part.file, member.offset)
    except OSError as error:
        raise DataError(f"{part.file}: cannot be read: {error.strerror}") from None
    return collector.flush()


def _list_folder(part: _Part) -> Listing:
    collector = Collector()
    try:
        with os.scandir(part.file) as entries:
            for entry in entries:
                if entry.is_file():
                    size = entry.stat().st_size
                    take(collector, Home(part.wnid), entry.name, size, part.file, 0)
    except OSError as error:
        raise DataError(f"{part.file}: cannot be listed: {error.strerror}") from None
    return collector.flush()


def take(
    collector: Collector,
    home: Home,
    path: str,
    size: int,
    file: Path,
    offset: int,
    deflated: int = 0,
) -> bool:
    """Note a file as an image of a class, or why it is none; True for an image.

    Args:
        collector: to be told.
        home: where it belongs.
        path: its name, perhaps with folders.
        size: its bytes.
        file: the archive it lies in.
        offset: of its first byte there.
        deflated: bytes it takes there, if that is compressed.
    """
    name = path.rpartition("/")[2]
    if name.startswith("."):
        return False
    match, is_class = _IMAGE.fullmatch(name), SYNSET.fullmatch(home.wnid) is not None
    told = f"{home.wnid}/{name}" if is_class else path
    if match is None or not is_class:
        collector.skip(told, "its name is not that of an image in a class")
    elif match[1] not in (home.wnid, None):
        collector.skip(told, f"its name says {match[1]}, it lies in {home.wnid}")
    elif max(size, deflated) > MAX_IMAGE_BYTES:
        collector.skip(told, f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    else:
        collector.add(home, file, name, offset, size, deflated)
        return True
    return False


def take_flat(
    collector: Collector,
    truth: Mapping[str, str],
    path: str,
    size: int,
    file: Path,
    offset: int,
) -> set[str]:
    """Note a validation image, whose class only ``truth`` (name without suffix → id) knows.

    Returns:
        Its name without suffix; nothing where ``truth`` does not know it.
    """
    name = path.rpartition("/")[2]
    stem = name.rpartition(".")[0]
    if stem not in truth:
        if not name.startswith("."):
            collector.skip(path, "nothing tells its class")
        return set()
    take(collector, Home(truth[stem]), path, size, file, offset)
    return {stem}


def check_is_tar(path: Path, file: BinaryIO) -> None:
    """Refuse an open file whose first bytes say that it is none: `DataError`."""
    start = os.pread(file.fileno(), 512, 0)
    if not start:
        raise DataError(f"{path}: empty file; fetch it again")
    if start.startswith(b"\x1f\x8b"):
        raise DataError(f"{path}: a gzip file, expected a plain tar; decompress it with gunzip")
    if start.lstrip()[:1] == b"<":
        raise DataError(
            f"{path}: a web page (HTML) and not an archive; the download was refused, open the "
            "file to read why"
        )
