"""Says what a path holds and what to type to make shards of it.

python -m data_tools.inspect PATH

Looks at names and first bytes only: the answer comes at once, and nothing is written.
"""

import argparse
import gzip
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from pretrain.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from pretrain.errors import DataError, run_command
from pretrain.location import is_remote, shown

_MEMBERS_LOOKED_AT = 20
_FOLDERS_LOOKED_AT = 5


@dataclass(frozen=True)
class Finding:
    """What a path is.

    Attributes:
        what: for people.
        source: first argument of `data_tools.build`; None where it takes none of this.
        path: what to give it; text where it is no path.
    """

    what: str
    source: str | None
    path: Path | str


def inspect_remote(url: str, *, allow_pipe: bool) -> Finding:
    """Recognise a shard set on a server, by its manifest alone.

    Raises:
        DataError: there is none, or it cannot be fetched.
    """
    manifest = read_manifest(url, allow_pipe=allow_pipe)
    allowed = " data.allow_pipe=true" if allow_pipe else ""
    return Finding(_shard_set(manifest, url) + allowed, None, shown(url))


def inspect(path: Path) -> Finding:
    """Recognise a path.

    Raises:
        DataError: it is missing, unreadable, or nothing known; the message says what was seen.
    """
    try:
        if not path.exists():
            raise DataError(f"{path}: does not exist")
        if path.is_dir():
            return _directory(path)
        if not path.is_file():
            raise DataError(f"{path}: neither a file nor a directory")
        return _file(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: a damaged gzip file: {error}; fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="an archive, a directory, or the URL of a shard set")
    parser.add_argument("--allow-pipe", action="store_true", help="PATH may be pipe:COMMAND {file}")
    options = parser.parse_args(arguments)
    if is_remote(options.path):
        found = inspect_remote(options.path, allow_pipe=options.allow_pipe)
    else:
        found = inspect(Path(options.path))
    print(f"{found.path}: {found.what}")
    if found.source is not None:
        named = found.source in ("imagefolder", "index")
        name, target = (" --name mine", "mine") if named else ("", found.source)
        path = shlex.quote(str(found.path))
        print(f"type: python -m data_tools.build {found.source} {path} shards/{target}{name}")
    return 0


def _directory(path: Path) -> Finding:
    from data_tools.archives import SYNSET, SYNSET_TAR
    from data_tools.hub_1k import find_hub
    from data_tools.imagenet1k import KAGGLE_DATA, TRAIN_21K, TRAIN_TAR
    from data_tools.swin_zip import TRAIN_MAP, TRAIN_ZIP

    if (path / MANIFEST_FILE).is_file():
        return Finding(_shard_set(read_manifest(path), path), None, path)
    if (path / TRAIN_TAR).is_file():
        return Finding("ImageNet-1K as published tars", "imagenet1k", path)
    if (path / KAGGLE_DATA).is_dir():
        return Finding("ImageNet-1K in Kaggle's layout", "imagenet1k", path)
    if (path / TRAIN_ZIP).is_file() and (path / TRAIN_MAP).is_file():
        return Finding("ImageNet-1K in the zips of the official Swin code", "imagenet1k", path)
    if find_hub(path) is not None:
        return Finding("ImageNet-1K with the names of the Hugging Face hub", "imagenet1k", path)
    if (path / TRAIN_21K).is_dir():
        return Finding("ImageNet-21K-P", "imagenet21kp", path)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if "train" in names:
        return _split_folders(path)
    for what, pattern in (("folders", SYNSET), ("tars", SYNSET_TAR)):
        count = sum(pattern.fullmatch(name) is not None for name in names)
        if count:
            return Finding(f"{count:,} {what} of WordNet synsets", "imagenet22k", path)
    archives = [name for name in names if name.endswith((".tar", ".tar.gz"))]
    if len(archives) == 1 or (len(names) == 1 and (path / names[0]).is_dir()):
        return inspect(path / (archives or names)[0])
    if archives:
        return _file(path / archives[0])
    sets = [name for name in names if (path / name / MANIFEST_FILE).is_file()]
    if sets:
        which = ", ".join(sets)
        return Finding(f"a directory of shard sets: {which}; inspect one of them", None, path)
    folders = [path / name for name in names if (path / name).is_dir()]
    if any(_holds_images(folder) for folder in folders[:_FOLDERS_LOOKED_AT]):
        return Finding("folders, taken for classes of images", "imagefolder", path)
    raise _unknown(path, names)


def _holds_images(folder: Path) -> bool:
    """Whether one of the first files in a folder, or in folders in it, is named as an image."""
    from data_tools.verify import is_image, split_name

    below = (islice(folder.glob(pattern), _MEMBERS_LOOKED_AT) for pattern in ("*", "*/*"))
    return any(is_image(split_name(path.name)[1]) for path in chain.from_iterable(below))


def _shard_set(manifest: Manifest, path: Path | str) -> str:
    splits = ", ".join(f"{s.name} {s.samples:,} images" for s in manifest.splits.values())
    return (
        f"a shard set, {manifest.edition}: {len(manifest.classes):,} classes, {splits}; train on "
        f"it with data.path={shlex.quote(str(path))}"
    )


def _split_folders(path: Path) -> Finding:
    from data_tools.archives import SYNSET

    classes = [entry.name for entry in (path / "train").iterdir() if entry.is_dir()]
    synsets = sum(SYNSET.fullmatch(name) is not None for name in classes)
    validation = any((path / name).is_dir() for name in ("val", "validation"))
    if synsets == len(classes) == 1000 and validation:
        return Finding("ImageNet-1K as image folders", "imagenet1k", path)
    return Finding(f"image folders of {len(classes):,} classes", "imagefolder", path)


def _file(path: Path) -> Finding:
    from data_tools.archives import SYNSET, SYNSET_TAR, check_is_tar, is_gzip
    from data_tools.imagenet1k import DEVKIT, SMALL_21K, TRAIN_21K, TRAIN_TAR, VAL_21K, VAL_TAR
    from data_tools.verify import is_image, split_name

    if path.name in (TRAIN_TAR, VAL_TAR, f"{DEVKIT}.tar.gz"):
        return Finding("one of the files of ImageNet-1K", "imagenet1k", path.absolute().parent)
    packed = is_gzip(path)
    if not packed:
        with path.open("rb") as file:
            check_is_tar(path, file)
    names = list(islice(_members(path, packed=packed), _MEMBERS_LOOKED_AT))
    form = "a compressed tar" if packed else "a tar"
    for name in names:
        folder, _, base = name.rpartition("/")
        if SYNSET_TAR.fullmatch(base):
            return Finding(f"{form} of tars of WordNet synsets", "imagenet22k", path)
        above, _, last = folder.rpartition("/")
        if SYNSET.fullmatch(last) and above.rpartition("/")[2] in (TRAIN_21K, VAL_21K, SMALL_21K):
            return Finding(f"{form} of ImageNet-21K-P", "imagenet21kp", path)
        if SYNSET.fullmatch(last):
            return Finding(f"{form} of folders of WordNet synsets", "imagenet22k", path)
    if SYNSET_TAR.fullmatch(path.name):
        parent = path.absolute().parent
        return Finding("the tars of WordNet synsets", "imagenet22k", parent)
    if any(name.endswith(".cls") for name in names):
        return Finding("WebDataset shards without a manifest", "index", path.absolute().parent)
    if names and all(name.count("/") > 0 and is_image(split_name(name)[1]) for name in names):
        raise DataError(
            f"{path}: {form} of image folders ({names[0][:60]}, …); unpack it, then inspect the "
            "directory: images that are no WordNet synsets are packed from there"
        )
    raise _unknown(path, names)


def _members(path: Path, *, packed: bool) -> Iterator[str]:
    from data_tools.tars import FileExtent, StreamExtent, walk

    if packed:
        with gzip.open(path) as plain:
            yield from (member.name for member in walk(StreamExtent(plain), str(path)))
        return
    with path.open("rb") as file:
        extent = FileExtent(file.fileno(), 0, path.stat().st_size)
        yield from (member.name for member in walk(extent, str(path)))


def _unknown(path: Path, names: list[str]) -> DataError:
    seen = ", ".join(name[:60] for name in names[:3]) or "nothing"
    return DataError(
        f"{path}: nothing known; it holds {seen}; docs/data.md lists what can be packed"
    )


if __name__ == "__main__":
    run_command(main)
