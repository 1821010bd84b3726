"""Reads one WebDataset shard that somebody else wrote, from its first header to its last image."""

import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from data_tools.tar_headers import Member, TarError
from data_tools.tar_walk import walk
from data_tools.verify import is_image, split_name

_MOST_IMAGE_BYTES = 256 * 2**20
_MOST_LABEL_BYTES = 64
_MOST_METADATA_BYTES = 2**16
_WORDNET_ID = re.compile(r"n\d{8}(?!\d)")
_REFETCH = "fetch it again"

Record = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Indexed:
    """One shard after its walk: what the manifest says of it, its records, and what is wrong."""

    bytes: int
    sha256: str
    records: list[Record]
    wordnet_ids: dict[int, dict[str, str]]
    """Label → WordNet id that keys or metadata name → the first such key."""
    problems: list[str]


def index_shard(path: Path) -> Indexed:
    """Walk a shard, read its labels and digest its images; problems are listed, never raised."""
    records: list[Record] = []
    wordnet_ids: dict[int, dict[str, str]] = {}
    problems: list[str] = []
    try:
        with path.open("rb") as file:
            for key, members in _samples(file.fileno(), problems):
                record = _record(file.fileno(), key, members, problems)
                if record is not None:
                    records.append(record)
                    wnid = _wordnet_id(file.fileno(), key, members, problems)
                    if wnid is not None:
                        wordnet_ids.setdefault(record[2], {}).setdefault(wnid, key)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return Indexed(0, "", [], {}, [f"cannot be read: {error.strerror}"])
    if not records and not problems:
        problems.append(f"an empty tar: no sample in it; {_REFETCH}")
    return Indexed(size, digest, records, wordnet_ids, problems)


def _samples(descriptor: int, problems: list[str]) -> list[tuple[str, dict[str, Member]]]:
    samples: list[tuple[str, dict[str, Member]]] = []
    seen: set[str] = set()
    try:
        for member in walk(descriptor):
            key, extension = split_name(member.name)
            if not samples or samples[-1][0] != key:
                if key in seen:
                    problems.append(f"{key}: its members do not follow each other")
                seen.add(key)
                samples.append((key, {}))
            if extension in samples[-1][1]:
                problems.append(f"{key}: two members {extension!r}")
            samples[-1][1][extension] = member
    except TarError as error:
        # The last sample may lack members for the same reason: one fault, one line.
        del samples[-1:]
        told = any(advice in str(error) for advice in (_REFETCH, "gunzip"))
        problems.append(str(error) if told else f"{error}; {error.remedy}")
    return samples


def _record(
    descriptor: int, key: str, members: dict[str, Member], problems: list[str]
) -> Record | None:
    images = [member for extension, member in members.items() if is_image(extension)]
    if len(images) != 1:
        problems.append(f"{key}: expected one image, found {', '.join(sorted(members))}")
        return None
    if "cls" not in members:
        problems.append(f"{key}: .cls is missing, found {', '.join(sorted(members))}")
        return None
    text = os.pread(descriptor, _MOST_LABEL_BYTES, members["cls"].offset)[: members["cls"].bytes]
    if not re.fullmatch(rb"\d{1,9}\s*", text) or members["cls"].bytes > _MOST_LABEL_BYTES:
        problems.append(f"{key}: .cls: expected a label as decimal number, got {text!r}")
        return None
    image = images[0]
    if not 0 < image.bytes <= _MOST_IMAGE_BYTES:
        problems.append(f"{key}: image of {image.bytes:,} bytes")
        return None
    data = os.pread(descriptor, image.bytes, image.offset)
    return image.offset, image.bytes, int(text), zlib.crc32(image.header_name), zlib.crc32(data)


def _wordnet_id(
    descriptor: int, key: str, members: dict[str, Member], problems: list[str]
) -> str | None:
    """The class that a sample names itself: in its key, or as ``wnid`` in its metadata."""
    in_key = _WORDNET_ID.match(key.rpartition("/")[2])
    in_metadata = _metadata_id(descriptor, members.get("json"))
    if in_key is None:
        return in_metadata
    if in_metadata not in (None, in_key[0]):
        problems.append(f"{key}: its key says {in_key[0]}, its json says {in_metadata}")
    return in_key[0]


def _metadata_id(descriptor: int, member: Member | None) -> str | None:
    if member is None or member.bytes > _MOST_METADATA_BYTES:
        return None
    try:
        found = json.loads(os.pread(descriptor, member.bytes, member.offset))
    except (ValueError, RecursionError):
        return None
    wnid = found.get("wnid") if isinstance(found, dict) else None
    return wnid if isinstance(wnid, str) and _WORDNET_ID.fullmatch(wnid) else None
