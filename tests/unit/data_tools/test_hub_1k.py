import gzip
import shutil
import tarfile
from pathlib import Path

import pytest
from raw_sets import build, digests

from data_tools.inspect import inspect
from data_tools.raw_forms import add_file
from data_tools.raw_forms_1k import ilsvrc, write_image_folder
from pretrain.data.manifest import read_manifest
from pretrain.errors import DataError

CONTENT = ilsvrc(8, seed=3, classes=3)
TRAIN = {
    f"{name.removesuffix('.JPEG')}_{wnid}.JPEG": data
    for wnid, files in CONTENT.train.items()
    for name, data in files.items()
}
VALIDATION = {
    f"{name.removesuffix('.JPEG')}_{wnid}.JPEG": data
    for name, (wnid, data) in CONTENT.validation.items()
}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            add_file(tar, name, data)


def write_flat(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def halves() -> list[dict[str, bytes]]:
    """The training images as the hub deals them out: every class in every archive."""
    return [dict(list(TRAIN.items())[i::2]) for i in range(2)]


def write_archives(root: Path) -> None:
    for i, files in enumerate(halves()):
        write_tar(root / f"train_images_{i}.tar", files)
    write_tar(root / "val_images.tar", {f"val/{name}": data for name, data in VALIDATION.items()})
    write_tar(root / "test_images.tar", {"ILSVRC2012_test_00000001.JPEG": b"x"})


def write_below_data(root: Path) -> None:
    write_archives(root / "data")
    (root / "README.md").write_text("card")


def write_unpacked(root: Path) -> None:
    for i, files in enumerate(halves()):
        write_flat(root / f"train_images_{i}", files)
    write_flat(root / "val_images", VALIDATION)


def write_together(root: Path) -> None:
    write_flat(root / "train", TRAIN)
    write_flat(root / "val", VALIDATION)


def write_by_class(root: Path) -> None:
    for split, files in (("train", TRAIN), ("val", VALIDATION)):
        for name, data in files.items():
            folder = root / split / name[-14:-5]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


FORMS = {
    "archives": write_archives,
    "below data": write_below_data,
    "unpacked": write_unpacked,
    "together": write_together,
    "by class": write_by_class,
}


def run(source: Path, destination: Path) -> int:
    return build("imagenet1k", source, destination)


def refusal(source: Path) -> str:
    with pytest.raises(DataError) as caught:
        run(source, source.parent / "set")
    assert not (source.parent / "set").exists()
    return str(caught.value)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """From the same images under their published names."""
    root = tmp_path_factory.mktemp("published")
    write_image_folder(root / "images", CONTENT)
    assert run(root / "images", root / "set") == 0
    return root / "set"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_shards_of_the_published_names(built, tmp_path, form):
    FORMS[form](tmp_path / "hub")
    found = inspect(tmp_path / "hub")
    assert (found.source, found.path) == ("imagenet1k", tmp_path / "hub")
    assert "Hugging Face" in found.what
    assert run(tmp_path / "hub", tmp_path / "set") == 0
    assert digests(tmp_path / "set") == digests(built)


def test_compressed_archives_say_what_to_do(tmp_path):
    write_archives(tmp_path / "hub")
    for path in list((tmp_path / "hub").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert inspect(tmp_path / "hub").source == "imagenet1k"
    message = refusal(tmp_path / "hub")
    assert "train_images_0.tar.gz: compressed, and only plain archives" in message
    assert f"run `gunzip {tmp_path / 'hub'}/*.tar.gz` first" in message


def test_missing_parts_are_named(tmp_path):
    root = tmp_path / "hub"
    write_archives(root)
    (root / "train_images_0.tar").unlink()
    assert "hub: train_images_0 is missing" in refusal(root)
    shutil.rmtree(root)
    write_archives(root)
    (root / "val_images.tar").unlink()
    assert "hub: no validation images; expected" in refusal(root)
    files = dict(list(VALIDATION.items())[1:])
    write_tar(root / "val_images.tar", files)
    assert "1 of 6 validation images are missing, such as number 1" in refusal(root)


def test_archives_that_are_none_or_cut_short(tmp_path):
    root = tmp_path / "hub"
    write_archives(root)
    whole = (root / "val_images.tar").read_bytes()
    (root / "val_images.tar").write_bytes(whole[:3000])
    assert "val_images.tar: cut short" in refusal(root)
    (root / "val_images.tar").write_text("<html>Access to this dataset is restricted</html>")
    assert "val_images.tar: a web page (HTML)" in refusal(root)


def test_archives_beside_their_own_folders_are_refused(tmp_path):
    write_archives(tmp_path / "hub")
    write_flat(tmp_path / "hub" / "train_images", TRAIN)
    assert "holds archives (train_images_0.tar, …) and folders" in refusal(tmp_path / "hub")


def test_names_that_contradict_themselves_are_left_out(tmp_path):
    root = tmp_path / "hub"
    write_unpacked(root)
    folder = root / "train_images_0"
    first = min(TRAIN)
    wrong = f"{first[:-14]}n00000009.JPEG"
    (folder / wrong).write_bytes(TRAIN[first])
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden").write_text("x")
    (root / "train_images_1" / "again").mkdir()
    for i in range(2):
        (root / f"train_images_{i}" / first).write_bytes(TRAIN[first])
    assert run(root, tmp_path / "set") == 0
    skipped = (tmp_path / "set" / "skipped.tsv").read_text()
    assert f"{wrong}\tits name says both {first[:9]} and n00000009" in skipped
    assert "notes.txt\tits name is not that of an image and its class" in skipped
    assert "another of its name comes later" in skipped
    assert "hidden" not in skipped
    assert read_manifest(tmp_path / "set").split("train").samples == 23


def test_validation_classes_must_be_trained(tmp_path):
    write_together(tmp_path / "hub")
    for name in TRAIN:
        if name.startswith(max(CONTENT.train)):
            (tmp_path / "hub" / "train" / name).unlink()
    message = refusal(tmp_path / "hub")
    assert "1 classes of the validation images have no training images, such as n" in message
