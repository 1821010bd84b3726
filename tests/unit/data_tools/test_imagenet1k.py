import gzip
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from raw_sets import build, digests, write_forms

from data_tools.raw_forms_1k import FORMS_1K, ilsvrc
from data_tools.swin_zip import list_swin_zips
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

CONTENT = ilsvrc(8, seed=3, classes=3)
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def run(source: Path, destination: Path, *options: str) -> int:
    return build("imagenet1k", source, destination, *options)


def shards(directory: Path) -> dict[str, str]:
    """Digests of everything but the manifest, whose readable names not every form knows."""
    return digests(directory, without="manifest.json")


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    return write_forms(tmp_path_factory.mktemp("forms"), FORMS_1K, CONTENT)


@pytest.fixture
def copied(forms, tmp_path):
    def copy(form: str) -> Path:
        return Path(shutil.copytree(forms / form, tmp_path / form))

    return copy


@pytest.fixture(scope="module")
def built(forms, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("built") / "set"
    assert run(forms / "tars", destination) == 0
    return destination


def test_validation_images_have_their_own_classes(built):
    manifest = read_manifest(built)
    assert manifest.edition == "imagenet1k"
    assert manifest.classes == tuple(sorted(CONTENT.train))
    reader = ShardReader(built, manifest.split("validation").shards, 3)
    samples = [reader.read(i) for i in range(manifest.split("validation").samples)]
    assert {(manifest.classes[s.label], s.data) for s in samples} == set(
        CONTENT.validation.values()
    )
    assert len(samples) == 6
    assert manifest.split("train").samples == 23


@pytest.mark.parametrize("form", ["kaggle", "swin_zips", "folders"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_form_gives_the_same_shards(forms, built, tmp_path, form, workers):
    assert run(forms / form, tmp_path / "set", "--workers", workers) == 0
    assert shards(tmp_path / "set") == shards(built)
    ours, theirs = read_manifest(tmp_path / "set"), read_manifest(built)
    for split in ("train", "validation"):
        assert ours.fingerprint(split) == theirs.fingerprint(split)
    known = form == "kaggle"
    assert (ours.class_names == theirs.class_names) == known
    assert (ours.class_names == ours.classes) != known


def test_an_unpacked_development_kit_will_do(built, copied, tmp_path):
    root = copied("tars")
    with tarfile.open(root / DEVKIT) as tar:
        for member in tar.getmembers():
            target = root / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
    (root / DEVKIT).unlink()
    assert run(root, tmp_path / "set") == 0
    assert shards(tmp_path / "set") == shards(built)


@pytest.mark.parametrize(
    ("form", "file", "message"),
    [
        ("tars", DEVKIT, r"no ILSVRC2012_devkit_t12\.tar\.gz; it alone tells the classes"),
        ("tars", "ILSVRC2012_img_val.tar", r"img_val\.tar: cannot be read: No such file"),
        ("kaggle", "LOC_val_solution.csv", r"solution\.csv: cannot be read"),
        ("kaggle", "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG",
         r"1 of 6 validation images are missing, such as ILSVRC2012_val_00000002\.JPEG"),
    ],
)  # fmt: skip
def test_missing_parts_are_named(copied, tmp_path, form, file, message):
    root = copied(form)
    (root / file).unlink()
    with pytest.raises(DataError, match=message):
        run(root, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_damaged_development_kits_are_refused(copied, tmp_path):
    root = copied("tars")
    whole = (root / DEVKIT).read_bytes()
    (root / DEVKIT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz: damaged or cut short"):
        run(root, tmp_path / "set")
    plain = gzip.decompress(whole)
    (root / DEVKIT).write_bytes(gzip.compress(plain.replace(b"\n1\n", b"\n9\n", 1)))
    with pytest.raises(DataError, match=r"ground_truth\.txt:\d: no class b'9' in meta\.mat"):
        run(root, tmp_path / "set")
    (root / DEVKIT).write_bytes(gzip.compress(plain.replace(b"meta.mat", b"meta.mzt")))
    with pytest.raises(DataError, match=r"devkit.*(no tar header|no meta\.mat)"):
        run(root, tmp_path / "set")


def test_malformed_tables_are_located(copied, tmp_path):
    root = copied("kaggle")
    with (root / "LOC_val_solution.csv").open("a") as file:
        file.write("ILSVRC2012_val_00000007,tench 1 2 3 4\n")
    with pytest.raises(DataError, match=r"solution\.csv:8: expected ImageId,PredictionString"):
        run(root, tmp_path / "set")


def test_a_table_with_a_field_of_any_length(copied, tmp_path):
    root = copied("kaggle")
    (root / "LOC_val_solution.csv").write_text('a,"' + "x" * 200_000)
    with pytest.raises(
        DataError, match=r"solution\.csv: no table of comma-separated values: field"
    ):
        run(root, tmp_path / "set")


def test_images_that_no_table_knows_are_left_out(built, copied, tmp_path):
    root = copied("kaggle")
    (root / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000099.JPEG").write_bytes(b"x")
    assert run(root, tmp_path / "set") == 0
    text = (tmp_path / "set" / "skipped.tsv").read_text()
    assert "ILSVRC2012_val_00000099.JPEG\tnothing tells its class" in text
    names = {name: digest for name, digest in shards(built).items() if name != "skipped.tsv"}
    assert names.items() <= shards(tmp_path / "set").items()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train_map.txt", "\t0\n", "\t1\n", r"has label 1, but n\d{8} is number 0 of the 3 sorted"),
        ("val_map.txt", "\t2\n", "\t3\n", "has label 3, expected 0 to 2"),
        ("val_map.txt", "\t2\n", " 2\n", r"val_map\.txt:\d: expected NAME<TAB>LABEL"),
        ("val_map.txt", "val_00000003", "val_00000009", "1 of 6 images of val_map.txt are missing"),
        ("train_map.txt", "/", "_", "lies in no folder"),
        ("train_map.txt", "\t0\n", "\t" + "1" * 5000 + "\n", "expected NAME<TAB>LABEL"),
        ("val_map.txt", "ILSVRC2012_val_00000001", "val/n00000000/ILSVRC2012_val_00000001",
         r"has label 0, but number 0 of the sorted ids of train_map\.txt is n\d{8}"),
    ],
)  # fmt: skip
def test_tables_of_zips_must_agree(copied, tmp_path, file, old, new, message):
    root = copied("swin_zips")
    text = (root / file).read_text()
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        run(root, tmp_path / "set")


def test_damaged_and_hostile_zips_are_refused(copied, tmp_path):
    root = copied("swin_zips")
    whole = (root / "train.zip").read_bytes()
    (root / "train.zip").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"train\.zip: damaged or cut short"):
        run(root, tmp_path / "set")
    name = next(iter((root / "train_map.txt").read_text().split("\t")))
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        link = zipfile.ZipInfo(name)
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"is a link or a device; only files"):
        run(root, tmp_path / "set")
    with zipfile.ZipFile(root / "train.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(name, b"x" * 100)
    with pytest.raises(DataError, match="compressed in a way not known"):
        run(root, tmp_path / "set")


def test_zips_with_a_mangled_directory_are_listed_or_refused(copied):
    """Whatever it says, it ends with a listing or in one line."""
    root = copied("swin_zips")
    whole = (root / "train.zip").read_bytes()
    start = int.from_bytes(whole[-6:-2], "little")
    random = np.random.default_rng(0)
    refused: set[str] = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(start, len(whole), random.integers(1, 4)):
            damaged[place] = random.choice([0, 255, int(random.integers(256))])
        (root / "train.zip").write_bytes(damaged)
        try:
            list_swin_zips(root)
        except DataError as error:
            refused.add(str(error))
    assert len(refused) > 20
    assert all(str(root) in message and "\n" not in message for message in refused)


def test_damage_inside_a_zip_is_reported_by_image(copied, tmp_path):
    root = copied("swin_zips")
    data = bytearray((root / "val.zip").read_bytes())
    with zipfile.ZipFile(root / "val.zip") as archive:
        second = archive.infolist()[1]
    assert second.compress_type == zipfile.ZIP_DEFLATED
    start = second.header_offset + 30 + len(second.filename)
    data[start : start + 40] = b"\xff" * 40
    (root / "val.zip").write_bytes(bytes(data))
    assert run(root, tmp_path / "set") == 0
    assert (
        f"{second.filename}\tdamaged in its zip" in (tmp_path / "set" / "skipped.tsv").read_text()
    )


def test_validation_classes_must_be_trained(copied, tmp_path):
    root = copied("folders")
    shutil.rmtree(root / "train" / sorted(CONTENT.train)[0])
    with pytest.raises(DataError, match="1 classes of the validation images have no training"):
        run(root, tmp_path / "set")


def test_other_directories_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no form of ImageNet-1K; expected .* ILSVRC"):
        run(tmp_path, tmp_path.parent / "never")


def test_the_named_order_needs_a_thousand_classes(forms, tmp_path):
    with pytest.raises(DataError, match="in1k: expected 1,000 synsets, the source has 3"):
        run(forms / "folders", tmp_path / "set", "--class-order", "in1k")
