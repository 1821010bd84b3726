import hashlib
from dataclasses import replace

import numpy as np
import pytest

from data_tools.shuffle_report import Settings, main, measure, read_labels
from pretrain.data.manifest import Manifest, Shard, Split, read_manifest, write_manifest
from pretrain.data.shards import INDEX_DTYPE
from pretrain.errors import DataError

CLASSES = 50
SHARDS, PER_SHARD = 40, 500
SETTINGS = Settings(global_batch=500, nodes=5, batches=20, seed=1, lanes=5, window_shards=4)


def a_split() -> Split:
    shards = [Shard(f"{i:03d}.tar", PER_SHARD, 10_240, "", "") for i in range(SHARDS)]
    return Split("train", tuple(shards))


def labels_in_order(kind: str) -> np.ndarray:
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), SHARDS * PER_SHARD // CLASSES)
    return labels if kind == "sorted" else np.random.default_rng(0).permutation(labels)


def test_a_set_packed_in_random_order_is_as_good_as_a_uniform_shuffle():
    mixing = measure(labels_in_order("shuffled"), a_split(), SETTINGS)
    assert mixing.collision_ratio == pytest.approx(1, abs=0.1)
    assert abs(mixing.autocorrelation) < 0.15
    assert mixing.is_good


def test_a_sorted_set_read_through_small_windows_is_bad():
    small = replace(SETTINGS, lanes=4, window_shards=2)
    mixing = measure(labels_in_order("sorted"), a_split(), small)
    # At a time four lanes of two to three shards, each of a class and a quarter.
    assert mixing.collision_ratio > 3
    assert mixing.autocorrelation > 0.5
    assert not mixing.is_good


def test_a_window_over_everything_is_a_uniform_shuffle_even_of_a_sorted_set():
    whole = replace(SETTINGS, window_shards=SHARDS)
    mixing = measure(labels_in_order("sorted"), a_split(), whole)
    assert mixing.collision_ratio == pytest.approx(1, abs=0.1)
    assert mixing.is_good


def test_shards_are_counted():
    """One lane whose windows are of two shards' worth: they touch two shards, or three."""
    narrow = replace(SETTINGS, lanes=1, window_shards=2, nodes=1)
    mixing = measure(labels_in_order("shuffled"), a_split(), narrow)
    assert mixing.shards_per_batch == 2
    assert mixing.shards_in_play == 2
    assert mixing.bytes_in_play == 10_240 * mixing.shards_in_play
    assert mixing.shards_per_batch_uniform == pytest.approx(40, abs=0.01)
    wide = measure(labels_in_order("shuffled"), a_split(), replace(SETTINGS, window_shards=40))
    assert wide.shards_per_batch == wide.shards_in_play == 40


def test_nodes_share_the_shards_in_play():
    """Five lanes of windows of four shards, which begin in the middle of a shard."""
    alone = measure(labels_in_order("shuffled"), a_split(), replace(SETTINGS, nodes=1))
    assert 5 * 4 <= alone.shards_in_play <= 5 * 5
    shared = measure(labels_in_order("shuffled"), a_split(), SETTINGS)
    assert 4 <= shared.shards_in_play <= 5


def test_collisions_are_counted_exactly():
    """Two classes in alternating shards, read one by one: every batch has one class."""
    labels = np.repeat(np.arange(SHARDS, dtype=np.int32) % 2, PER_SHARD)
    mixing = measure(labels, a_split(), replace(SETTINGS, lanes=1, window_shards=1))
    total = SHARDS * PER_SHARD
    chance = 2 * (total / 2) * (total / 2 - 1) / (total * (total - 1))
    assert mixing.collision_ratios == pytest.approx(1 / chance)


def test_too_few_batches_are_refused():
    with pytest.raises(DataError, match="fewer than two global batches of 15,000"):
        measure(labels_in_order("sorted"), a_split(), replace(SETTINGS, global_batch=15_000))


@pytest.fixture
def sorted_set(tmp_path) -> Manifest:
    """Only what the report reads: manifest and indices; the tars have the right size."""
    labels = labels_in_order("sorted").reshape(SHARDS, PER_SHARD)
    shards = []
    for number, part in enumerate(labels):
        records = np.zeros(PER_SHARD, INDEX_DTYPE)
        records["label"] = part
        records.tofile(tmp_path / f"{number:03d}.idx")
        (tmp_path / f"{number:03d}.tar").write_bytes(bytes(10_240))
        digest = hashlib.sha256(records.tobytes()).hexdigest()
        shards.append(Shard(f"{number:03d}.tar", PER_SHARD, 10_240, "", digest))
    names = tuple(f"n{i:08d}" for i in range(CLASSES))
    split = {"train": Split("train", tuple(shards))}
    write_manifest(Manifest(tmp_path, "sorted", names, names, split), tmp_path)
    return read_manifest(tmp_path)


def test_labels_come_from_the_indices(sorted_set):
    labels = read_labels(sorted_set, sorted_set.split("train"))
    assert np.array_equal(labels, labels_in_order("sorted"))


def test_the_command_warns_advises_and_plots(sorted_set, tmp_path, capsys):
    plot = tmp_path / "mixing.svg"
    arguments = [str(sorted_set.root), "--global-batch", "500", "--nodes", "5"]
    sizes = ["--lanes", "4", "--window-shards", "2", "--plot", str(plot)]
    assert main([*arguments, *sizes]) == 1
    out = capsys.readouterr().out
    assert "20,000 samples of 50 classes in 40 shards" in out
    assert "warning: neighbouring images are alike" in out
    assert "data.window_shards=" in out
    assert "shuffles the whole split" in out
    assert b"<svg" in plot.read_bytes()
    advised = out.partition("data.window_shards=")[2].partition(" ")[0]
    assert main([*arguments, "--lanes", "4", "--window-shards", advised]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "3"], "--nodes: 3 do not divide"),
        (["--global-batch", "1"], "--global-batch: expected at least 2"),
        (["--split", "other"], "no split 'other'"),
        (["--global-batch", "500", "--plot", "nowhere/x.svg"], "cannot be written"),
        (["--global-batch", "500", "--plot", "x.doc"], "cannot be written"),
    ],
)
def test_bad_options_are_refused(sorted_set, options, message):
    with pytest.raises(DataError, match=message):
        main([str(sorted_set.root), *options])
