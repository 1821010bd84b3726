"""Lists ImageNet-1K as the official Swin code takes it: two zips and the tables of their labels.

``train.zip`` and ``val.zip`` lie beside ``train_map.txt`` and ``val_map.txt``, whose lines are a
name in the zip, a tab, and a label: the position of its class among the sorted WordNet ids.
Members are read in place, by offset; nothing is extracted.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from data_tools.archives import SYNSET, Collector, Home, Listing, take
from pretrain.errors import DataError

TRAIN_ZIP, TRAIN_MAP = "train.zip", "train_map.txt"
VAL_ZIP, VAL_MAP = "val.zip", "val_map.txt"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1


def list_swin_zips(root: Path) -> tuple[Listing, Listing]:
    """List the training and the validation images.

    Raises:
        DataError: a file is missing or damaged, holds what is refused, or a table contradicts the
            names it lists.
    """
    labels = _read_map(root / TRAIN_MAP)
    wnids = {name: name.rpartition("/")[0].rpartition("/")[2] for name in labels}
    classes = sorted(set(wnids.values()))
    place = {wnid: label for label, wnid in enumerate(classes)}
    for name, label in labels.items():
        wnid = wnids[name]
        if SYNSET.fullmatch(wnid) is None:
            raise DataError(f"{root / TRAIN_MAP}: {name[:80]!r} lies in no folder nXXXXXXXX")
        if place[wnid] != label:
            raise DataError(
                f"{root / TRAIN_MAP}: {name[:80]} has label {label}, but {wnid} is number "
                f"{place[wnid]} of the {len(classes):,} sorted ids; use the table of this zip"
            )
    train = _list_zip(root / TRAIN_ZIP, wnids, root / TRAIN_MAP)
    truth: dict[str, str] = {}
    for name, label in _read_map(root / VAL_MAP).items():
        if label >= len(classes):
            raise DataError(
                f"{root / VAL_MAP}: {name[:80]} has label {label}, expected 0 to {len(classes) - 1}"
            )
        truth[name] = classes[label]
    return train, _list_zip(root / VAL_ZIP, truth, root / VAL_MAP)


def _read_map(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name, _, label = line.partition("\t")
        if not name or not label.strip().isdecimal():
            raise DataError(f"{file}:{number}: expected NAME<TAB>LABEL, got {line[:80]!r}")
        labels[name] = int(label)
    if not labels:
        raise DataError(f"{file}: empty; expected lines NAME<TAB>LABEL")
    return labels


def _list_zip(archive: Path, wnids: Mapping[str, str], table: Path) -> Listing:
    collector, missing = Collector(), dict(wnids)
    try:
        with archive.open("rb") as file, zipfile.ZipFile(file) as directory:
            size = archive.stat().st_size
            for info in directory.infolist():
                if info.is_dir():
                    continue
                # Zips of the folder itself have its name before every other.
                short = info.filename.partition("/")[2]
                name = info.filename if info.filename in wnids else short
                if name not in wnids:
                    collector.skip(info.filename, f"not in {table.name}")
                    continue
                missing.pop(name, None)
                offset = _data_offset(archive, file.fileno(), info, size)
                deflated = 0 if info.compress_type == zipfile.ZIP_STORED else info.compress_size
                home = Home(wnids[name])
                take(collector, home, name, info.file_size, archive, offset, deflated)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise DataError(f"{archive}: damaged or cut short: {error}; fetch it again") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror or error}") from None
    if missing:
        raise DataError(
            f"{archive}: {len(missing):,} of {len(wnids):,} images of {table.name} are missing, "
            f"such as {min(missing)}; fetch the rest"
        )
    return collector.flush()


def _data_offset(archive: Path, descriptor: int, info: zipfile.ZipInfo, size: int) -> int:
    where = f"{archive}: member {info.filename[:100]!r}"
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise DataError(f"{where} is a link or a device; only files are expected")
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{where} is encrypted; pack the zip again without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is compressed in a way not known; zip it again with zip -0")
    block = os.pread(descriptor, _LOCAL_HEADER.size, info.header_offset)
    start, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(block)
    offset = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start != b"PK\x03\x04" or offset + info.compress_size > size:
        raise zipfile.BadZipFile(f"no member at byte {info.header_offset:,}")
    return offset
