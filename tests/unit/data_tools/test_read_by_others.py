"""Shards are plain WebDataset: programs that know nothing of this one read them."""

import shutil
import subprocess
from pathlib import Path

import pytest
import webdataset
from image_folders import image_bytes, write_folder
from PIL import Image

from data_tools.build import main
from pretrain.data.manifest import Manifest, read_manifest

ODD = ("PNG", "GIF", "WEBP", "BMP", "TIFF")
ALL_KEYS = "jpg;png;webp;gif;bmp;tif"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Manifest:
    """JPEGs and one image of each other format, all named .JPEG."""
    root = tmp_path_factory.mktemp("others")
    write_folder(root / "images")
    for number, kind in enumerate(ODD):
        data = image_bytes(number, kind)
        (root / "images" / "train" / "n01" / f"odd_{kind}.JPEG").write_bytes(data)
    arguments = [str(root / "images"), str(root / "set"), "--name", "tiny", "--shard-mib", "0.02"]
    assert main(["imagefolder", *arguments]) == 0
    return read_manifest(root / "set")


def labels_of(manifest: Manifest, split: str) -> list[int]:
    files = [str(manifest.root / shard.file) for shard in manifest.split(split).shards]
    samples = webdataset.WebDataset(files, shardshuffle=False)
    return sorted(int(sample["cls"]) for sample in samples)


def test_webdataset_finds_an_image_in_every_sample(built):
    files = [str(built.root / shard.file) for shard in built.split("train").shards]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("pil"))
    assert len(samples) == built.split("train").samples
    found = [next(s[key] for key in ALL_KEYS.split(";") if key in s) for s in samples]
    assert all(isinstance(image, Image.Image) for image in found)
    assert all(s["json"]["wnid"] == built.classes[s["cls"]] for s in samples)


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar here")
def test_tar_lists_and_extracts_them(built, tmp_path):
    for shard in built.split("train").shards:
        subprocess.run(
            ["tar", "-xf", str(built.root / shard.file), "-C", str(tmp_path)],
            check=True,
            capture_output=True,
        )
    files = list(tmp_path.iterdir())
    assert len(files) == 3 * built.split("train").samples
    extensions = {Path(file).suffix for file in files}
    assert extensions == {".cls", ".json", *(f".{key}" for key in ALL_KEYS.split(";"))}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_timm_reads_them(built, split):
    """By ``_info.json`` alone; formats it does not look for by itself must be named to it."""
    pytest.importorskip("timm")
    from timm.data import create_dataset

    found = create_dataset("wds/", root=str(built.root), split=split, input_key=ALL_KEYS)
    samples = list(found)
    assert len(samples) == len(found) == built.split(split).samples
    assert sorted(label for _, label in samples) == labels_of(built, split)
    assert all(image.mode == "RGB" for image, _ in samples)
