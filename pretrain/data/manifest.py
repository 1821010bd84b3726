"""The manifest of a shard set: which shards there are, what they hold, and what the labels mean.

A shard set is one directory::

    NAME-train-000000.tar        an ordinary WebDataset shard: KEY.cls, KEY.jpg, KEY.json, …
    NAME-train-000000.idx        one 24-byte record per sample (see `pretrain.data.shards`)
    NAME-validation-000000.tar   …
    manifest.json                this module's file; a directory without it is not a shard set
    _info.json                   the same counts in the form timm's WebDataset reader expects

``manifest.json`` is one object: ``format`` ("swin-pretrain shard set"), ``version`` (2),
``edition`` (text), ``classes`` (WordNet ids, the position is the label), ``class_names`` (in the
same order), ``class_order_sha256``, and ``splits``: name → list of shards with ``file``,
``samples``, ``bytes``, ``sha256`` and ``index_sha256``. Its ``sha256`` is the digest of all else in
it, so that a flipped bit in a name or a count cannot pass either.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.data.remote import LAUNCH_PATIENCE, Patience, probe, read_bytes
from pretrain.errors import DataError
from pretrain.files import replace_text
from pretrain.location import RemoteFile, cache_directory, fault_of, is_remote, set_directory, shown

MANIFEST_FILE = "manifest.json"
TIMM_INFO_FILE = "_info.json"
FORMAT = "swin-pretrain shard set"
VERSION = 2
INDEX_RECORD_BYTES = 24
"""Size of one sample's record in a shard's index."""
_PROBLEMS_SHOWN = 20
_PROBED = 4
_MOST_MANIFEST_BYTES = 2**28


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        file: name inside the directory of the set.
        samples: images in it.
        bytes: size of the tar file.
        sha256: digest of the tar file, hexadecimal.
        index_sha256: digest of its index, hexadecimal.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in manifest order: sample ids count through them."""

    name: str
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        """Images in the split."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of the split's tar files together."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """A shard set.

    Attributes:
        root: absolute directory that holds it; of a remote set, the one on this node where its
            files lie once they are fetched (see `pretrain.data.cache`).
        edition: what the images are, such as ``imagenet22k-fall11``.
        classes: WordNet ids; the position of an id is its label.
        class_names: a readable name per class, the id itself where none is known.
        splits: name → split.
        url: of a remote set, what names it (see `pretrain.location`); else None.
    """

    root: Path
    edition: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    url: str | None = None

    @property
    def location(self) -> str:
        """Where it is, for people."""
        return str(self.root) if self.url is None else shown(self.url)

    @property
    def class_order_sha256(self) -> str:
        """Digest of the ordered class list: equal digests mean equal labels."""
        return class_order_sha256(self.classes)

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            DataError: there is none; the message lists those there are.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.location}/{MANIFEST_FILE}: no split {name!r}; there are: "
                f"{', '.join(sorted(self.splits))}"
            )
        return self.splits[name]

    @property
    def default_split(self) -> str:
        """Name of the split that is measured where none is given: the only one, or validation."""
        return next(iter(self.splits)) if len(self.splits) == 1 else "validation"

    def fingerprint(self, split_name: str) -> str:
        """Digest of the class order and of every shard of the split, in order.

        Equal fingerprints mean that a sample id is the same image with the same label.
        """
        shards = [asdict(shard) for shard in self.split(split_name).shards]
        text = json.dumps([self.class_order_sha256, shards], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def class_order_sha256(classes: Sequence[str]) -> str:
    """Digest of an ordered class list, hexadecimal."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()


def index_path(root: Path, shard: Shard) -> Path:
    """Where the index of a shard lies: beside it, ``.idx`` for ``.tar``."""
    return (root / shard.file).with_suffix(".idx")


def read_manifest(
    where: str | Path,
    *,
    cache_dir: str | None = None,
    allow_pipe: bool = False,
    patience: Patience = LAUNCH_PATIENCE,
) -> Manifest:
    """Read and check the manifest of a shard set; the shards themselves are not touched.

    Args:
        where: the directory, or the name of a remote set (see `pretrain.location`).
        cache_dir: where this node keeps files of remote sets, as ``data.cache_dir``.
        allow_pipe: whether the name may be a command.
        patience: the deadlines for a remote set.

    Raises:
        DataError: the directory or its ``manifest.json`` is missing, unreadable, damaged, of
            another version, or contradicts itself.
    """
    if is_remote(where):
        return _read_remote(str(where), cache_directory(cache_dir), allow_pipe, patience)
    root = Path(where).expanduser().absolute()
    path = root / MANIFEST_FILE
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"{root}: {state}; expected a directory with {MANIFEST_FILE}; build one with "
            "`python -m data_tools.build` (`python -m data_tools.inspect PATH` says how)"
        )
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found, so {root} is not a complete shard set; build one with "
            "`python -m data_tools.build` (`python -m data_tools.inspect PATH` says how)"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse(_load(text, path), root, path)


def _read_remote(url: str, cache: Path, allow_pipe: bool, patience: Patience) -> Manifest:
    fault = fault_of(url, allow_pipe=allow_pipe)
    if fault is not None:
        raise DataError(fault)
    file = RemoteFile(url, MANIFEST_FILE)
    document = _load(read_bytes(file, _MOST_MANIFEST_BYTES, patience), file)
    manifest = _parse(document, cache, file)
    root = set_directory(cache, url, _document_sha256(document))
    return replace(manifest, root=root, url=url)


def _load(text: bytes, where: Path | RemoteFile) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: damaged, not JSON ({error}); build the set again") from None


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write ``_info.json`` and then, last, ``manifest.json`` into ``directory``, synced to disk.

    Each appears whole or not at all.

    Raises:
        DataError: the manifest contradicts itself, or the directory cannot be written.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "edition": manifest.edition,
        "class_order_sha256": manifest.class_order_sha256,
        "classes": list(manifest.classes),
        "class_names": list(manifest.class_names),
        "splits": {
            name: [asdict(shard) for shard in split.shards]
            for name, split in manifest.splits.items()
        },
    }
    document["sha256"] = _document_sha256(document)
    _parse(document, manifest.root, directory / MANIFEST_FILE)
    try:
        replace_text(directory / TIMM_INFO_FILE, timm_info_text(manifest))
        replace_text(directory / MANIFEST_FILE, _text(document))
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror}") from None


def check_shards(manifest: Manifest, split_name: str, rank: int = 0, ranks: int = 1) -> None:
    """Check that every shard of the split and its index exist with the size the manifest says.

    Costs four calls of the file system per shard, which ranks share; contents are checked when
    they are read. Of a remote set each share asks for four files only, since thousands of requests
    before every start are no kindness to a server: all else is noticed when it is fetched.

    Args:
        manifest: the shard set.
        split_name: one of its splits.
        rank: which share to look at.
        ranks: how many shares there are.

    Raises:
        DataError: one line per disagreement (the first 20, then their number).
    """
    shards = manifest.split(split_name).shards[rank::ranks]
    if manifest.url is None:
        problems = _local_problems(manifest, shards)
    else:
        problems = _remote_problems(manifest.url, shards)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        lines = problems[:_PROBLEMS_SHOWN] + ([f"… and {more} more such files"] if more > 0 else [])
        raise DataError("\n".join(lines))


def _remote_problems(url: str, shards: Sequence[Shard]) -> list[str]:
    evenly = {(len(shards) - 1) * part // (_PROBED - 1) for part in range(_PROBED if shards else 0)}
    probed = [shards[number] for number in sorted(evenly)]
    with ThreadPoolExecutor(_PROBED) as pool:
        found = pool.map(
            lambda shard: probe(RemoteFile(url, shard.file), shard.bytes, LAUNCH_PATIENCE), probed
        )
        return [problem for problem in found if problem is not None]


def _local_problems(manifest: Manifest, shards: Sequence[Shard]) -> list[str]:
    problems: list[str] = []
    for shard in shards:
        expected = {
            manifest.root / shard.file: shard.bytes,
            index_path(manifest.root, shard): shard.samples * INDEX_RECORD_BYTES,
        }
        for path, expected_bytes in expected.items():
            try:
                found = path.stat().st_size
            except OSError as error:
                problems.append(f"{path}: {error.strerror}; copy it here again")
                continue
            if not os.access(path, os.R_OK):
                problems.append(f"{path}: not readable by you; run: chmod u+r {path}")
            elif found != expected_bytes:
                problems.append(
                    f"{path}: {found:,} bytes, the manifest says {expected_bytes:,}; "
                    "copy it here again"
                )
    return problems


def timm_info_text(manifest: Manifest) -> str:
    """The content of ``_info.json``: the counts as timm's WebDataset reader wants them."""
    info = {
        "name": manifest.edition,
        "splits": {
            name: {
                "name": name,
                "num_samples": split.samples,
                "filenames": [shard.file for shard in split.shards],
                "shard_lengths": [shard.samples for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        },
    }
    return _text(info)


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _document_sha256(document: Mapping[str, Any]) -> str:
    """Digest of a manifest without the digest it holds, whatever the layout of its text."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class _ContradictionError(Exception):
    """What is wrong inside a manifest."""


def _parse(document: object, root: Path, path: Path | RemoteFile) -> Manifest:
    try:
        return _manifest(document, root)
    except _ContradictionError as error:
        raise DataError(f"{path}: damaged: {error}; build or copy the set again") from None


def _manifest(document: object, root: Path) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _ContradictionError(f'expected an object with "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise _ContradictionError(f"version {document.get('version')!r}, expected {VERSION}")
    edition = document.get("edition")
    if not isinstance(edition, str) or not edition:
        raise _ContradictionError(f"edition: expected text, got {edition!r}")
    classes = _texts(document, "classes")
    class_names = _texts(document, "class_names")
    if len(set(classes)) != len(classes):
        raise _ContradictionError("classes: some id stands there twice")
    if len(class_names) != len(classes):
        raise _ContradictionError(f"{len(class_names)} class_names for {len(classes)} classes")
    if document.get("class_order_sha256") != class_order_sha256(classes):
        raise _ContradictionError("class_order_sha256 is not the digest of classes")
    splits = document.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise _ContradictionError("splits: expected an object with at least one split")
    found = {name: _split(name, shards) for name, shards in splits.items()}
    if document.get("sha256") != _document_sha256(document):
        raise _ContradictionError("its sha256 is not the digest of what it says")
    return Manifest(root, edition, classes, class_names, found)


def _texts(document: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = document.get(key)
    if not isinstance(values, list) or not values:
        raise _ContradictionError(f"{key}: expected a list of texts")
    for value in values:
        if not isinstance(value, str) or not value:
            raise _ContradictionError(f"{key}: expected texts, got {value!r}")
    return tuple(values)


def _split(name: str, shards: object) -> Split:
    if not isinstance(shards, list) or not shards:
        raise _ContradictionError(f"splits.{name}: expected a list of shards")
    split = Split(name, tuple(_shard(f"splits.{name}[{i}]", s) for i, s in enumerate(shards)))
    if len({shard.file for shard in split.shards}) != len(split.shards):
        raise _ContradictionError(f"splits.{name}: some file stands there twice")
    return split


def _shard(where: str, value: object) -> Shard:
    if not isinstance(value, dict) or set(value) != set(Shard.__dataclass_fields__):
        raise _ContradictionError(f"{where}: expected {', '.join(Shard.__dataclass_fields__)}")
    for key in ("samples", "bytes"):
        if type(value[key]) is not int or value[key] < 1:
            raise _ContradictionError(
                f"{where}.{key}: expected a count above 0, got {value[key]!r}"
            )
    for key in ("file", "sha256", "index_sha256"):
        if not isinstance(value[key], str):
            raise _ContradictionError(f"{where}.{key}: expected text, got {value[key]!r}")
    # A name that leads out of the directory would make a copied manifest read other files.
    if Path(value["file"]).name != value["file"] or not value["file"].endswith(".tar"):
        raise _ContradictionError(f"{where}.file: expected a plain name.tar, got {value['file']!r}")
    return Shard(**value)
