import json

import numpy as np
import pytest
from PIL import Image

from data_tools.synthetic import Counts, make
from pretrain.data.manifest import check_shards, read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

COUNTS = Counts(train_22k=4, validation_22k=2, train_1k=3, validation_1k=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    destination = tmp_path_factory.mktemp("synthetic") / "set"
    lines = make(destination, seed=0, workers=1, counts=COUNTS)
    assert "made in" in lines[0]
    return destination


def test_both_editions_are_whole(made):
    large, small = read_manifest(made / "22k"), read_manifest(made / "1k")
    counts = {
        (manifest.edition, split.name): split.samples
        for manifest in (large, small)
        for split in manifest.splits.values()
    }
    assert counts == {
        ("synthetic22k", "train"): 48,
        ("synthetic22k", "validation"): 24,
        ("synthetic1k", "train"): 18,
        ("synthetic1k", "validation"): 6,
    }
    for manifest in (large, small):
        for split in manifest.splits:
            check_shards(manifest, split)


def test_small_classes_are_some_of_the_large_ones_at_other_positions(made):
    large, small = read_manifest(made / "22k"), read_manifest(made / "1k")
    assert len(large.classes) == 12
    assert len(small.classes) == 6
    positions = [large.classes.index(wnid) for wnid in small.classes]
    assert positions != list(range(6))
    assert [large.class_names[i] for i in positions] == list(small.class_names)


def test_no_picture_stands_twice(made):
    seen: set[bytes] = set()
    count = 0
    for edition in ("22k", "1k"):
        manifest = read_manifest(made / edition)
        for split in manifest.splits.values():
            reader = ShardReader(manifest.root, split.shards, len(manifest.classes))
            seen |= {reader.read(i).data for i in range(split.samples)}
            count += split.samples
    assert len(seen) == count


def test_the_same_seed_makes_the_same_set(made, tmp_path):
    make(tmp_path / "again", seed=0, workers=2, counts=COUNTS)
    make(tmp_path / "other", seed=1, workers=1, counts=COUNTS)
    first, again, other = (
        read_manifest(root / "22k").fingerprint("train")
        for root in (made, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


def test_what_is_there_is_used_again(made):
    before = (made / "22k" / "manifest.json").stat().st_mtime_ns
    assert make(made, seed=0, workers=1, counts=COUNTS) == [f"{made}: already there"]
    assert (made / "22k" / "manifest.json").stat().st_mtime_ns == before


def test_other_settings_are_refused(made):
    with pytest.raises(DataError, match=r"made with .*'seed': 0.* asked for .*'seed': 7"):
        make(made, seed=7, workers=1, counts=COUNTS)


def test_damaged_sets_are_refused(tmp_path):
    counts = Counts(1, 1, 1, 1)
    make(tmp_path / "set", seed=0, workers=1, counts=counts)
    manifest = read_manifest(tmp_path / "set" / "1k")
    (manifest.root / manifest.split("train").shards[0].file).unlink()
    with pytest.raises(DataError, match="No such file"):
        make(tmp_path / "set", seed=0, workers=1, counts=counts)
    (tmp_path / "set" / "synthetic.json").write_text("{")
    with pytest.raises(DataError, match=r"synthetic\.json: unreadable"):
        make(tmp_path / "set", seed=0, workers=1, counts=counts)


def test_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds 1 entries \(thesis\.txt\)"):
        make(tmp_path, seed=0, workers=1, counts=COUNTS)


def test_the_colours_alone_do_not_tell_the_classes(made):
    """A mean colour per class must not be enough, or nothing would be learnt."""
    means: dict[str, list[np.ndarray]] = {}
    for path in sorted((made / "images" / "22k").rglob("*.JPEG")):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=float)
        means.setdefault(path.parent.name, []).append(pixels.mean(axis=(0, 1)))
    centres = {wnid: np.mean(values, axis=0) for wnid, values in means.items()}
    right = sum(
        min(centres, key=lambda other: np.linalg.norm(value - centres[other])) == wnid
        for wnid, values in means.items()
        for value in values
    )
    assert right / sum(map(len, means.values())) < 0.6


def test_the_mark_says_how_it_was_made(made):
    mark = json.loads((made / "synthetic.json").read_text())
    assert mark["seed"] == 0
    assert mark["counts"]["train_22k"] == 4
