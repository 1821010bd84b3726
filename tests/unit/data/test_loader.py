"""The loader in one process; worker processes are in tests/dist/test_loader_processes.py."""

from dataclasses import replace

import pytest
import torch

from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig
from pretrain.data import loader
from pretrain.data.batch import BadSample, Batch
from pretrain.data.crop import eval_image, train_image
from pretrain.data.loader import eval_batches, train_batches
from pretrain.data.manifest import Manifest, index_path
from pretrain.data.order import SampleOrder
from pretrain.data.shards import ShardReader, read_index
from pretrain.errors import DataError
from pretrain.world import World

SIZE, SEED = 16, 3


def settings_of(**fields) -> DataConfig:
    return DataConfig(path=".", workers_per_rank=0, lanes=3, window_shards=2, **fields)


def trained(manifest: Manifest, world=None, data=None, **changes) -> list[Batch]:
    arguments = {
        "global_batch": 12,
        "micro_batch": 3,
        "accumulation": 2,
        "first_step": 0,
        "last_step": 9,
    } | changes
    batches = train_batches(
        manifest,
        data or settings_of(),
        AugmentConfig(),
        seed=SEED,
        image_size=SIZE,
        world=world or World(0, 2, 0, 2),
        **arguments,
    )
    with batches:
        return list(batches)


def evaluated(manifest: Manifest, world=None, data=None, batch=4, resize=None) -> list[Batch]:
    config = EvalConfig(batch_size_per_rank=batch, resize=resize)
    with eval_batches(
        manifest, "validation", data or settings_of(), config, image_size=SIZE,
        world=world or World(),
    ) as batches:  # fmt: skip
        return list(batches)


def damage(manifest: Manifest, split: str, sample_id: int) -> str:
    """Overwrite the middle of a sample's bytes; returns its key."""
    reader = ShardReader(manifest.root, manifest.split(split).shards, len(manifest.classes))
    key = reader.read(sample_id).key
    shard, position = reader.locate(sample_id)
    record = read_index(manifest.root, shard)[position]
    with (manifest.root / shard.file).open("r+b") as file:
        file.seek(int(record["offset"]) + int(record["bytes"]) // 2)
        file.write(b"damaged!")
    return key


def stream(manifest: Manifest, count: int) -> list[int]:
    shards = [shard.samples for shard in manifest.split("train").shards]
    order = SampleOrder(shards, seed=SEED, lanes=3, window_shards=2)
    assert order.lanes == 3
    batches = [order.batch(step, 12, 0, 12) for step in range(count // 12)]
    return [sample_id for batch in batches for sample_id in batch.sample_ids.tolist()]


def test_batches_have_the_promised_form(shard_set):
    batches = trained(shard_set)
    assert len(batches) == 9 * 2
    for batch in batches:
        assert batch.images.shape == (3, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.sample_ids.dtype == batch.seeds.dtype == torch.int64
        assert batch.valid.dtype == torch.bool
        assert batch.valid.all()
        assert (batch.seeds >= 0).all()
        assert batch.bad == ()


@pytest.mark.parametrize(
    ("ranks", "micro", "accumulation"), [(1, 12, 1), (1, 4, 3), (2, 6, 1), (3, 2, 2), (12, 1, 1)]
)
def test_any_world_reads_the_same_global_batches(shard_set, ranks, micro, accumulation):
    """9 steps of 12 over 42 images: two epochs and a half, straddling."""
    by_rank = [
        trained(shard_set, World(r, ranks, r, ranks), micro_batch=micro, accumulation=accumulation)
        for r in range(ranks)
    ]
    ids, images, seeds = [], [], []
    for step in range(9):
        for rank in range(ranks):
            for batch in by_rank[rank][step * accumulation : (step + 1) * accumulation]:
                ids += batch.sample_ids.tolist()
                seeds += batch.seeds.tolist()
                images.append(batch.images)
    assert ids == stream(shard_set, 9 * 12)
    alone = trained(shard_set, World(), micro_batch=12, accumulation=1)
    assert torch.equal(torch.cat(images), torch.cat([batch.images for batch in alone]))
    assert seeds == torch.cat([batch.seeds for batch in alone]).tolist()
    # 42 is no multiple of 12: the fourth step straddles the first two epochs.
    assert set(range(42)) <= set(ids[:48])


@pytest.mark.parametrize("first_step", [1, 4, 8])
def test_any_step_can_be_the_first(shard_set, first_step):
    whole, resumed = trained(shard_set), trained(shard_set, first_step=first_step)
    assert len(resumed) == (9 - first_step) * 2
    for expected, batch in zip(whole[first_step * 2 :], resumed, strict=True):
        assert batch.sample_ids.tolist() == expected.sample_ids.tolist()
        assert torch.equal(batch.images, expected.images)


def test_images_and_labels_are_those_of_the_sample(shard_set):
    reader = ShardReader(shard_set.root, shard_set.split("train").shards, 3)
    augment = AugmentConfig()
    for batch in trained(shard_set, last_step=3):
        for i, sample_id in enumerate(batch.sample_ids.tolist()):
            sample = reader.read(sample_id)
            assert batch.labels[i] == sample.label
            expected = train_image(
                sample.data, int(batch.seeds[i]), SIZE, augment.crop_scale, augment.crop_ratio
            )
            assert torch.equal(batch.images[i], expected)


def test_bad_samples_are_replaced_by_the_next_and_reported(own_shard_set):
    order = stream(own_shard_set, 12)
    # Entries 4 to 7 are of the second lane.
    key = damage(own_shard_set, "train", order[5])
    data = settings_of(max_bad_fraction=0.1)
    alone = trained(own_shard_set, World(), data, micro_batch=12, accumulation=1, last_step=1)[0]
    assert alone.sample_ids.tolist() == [*order[:5], order[6], *order[6:]]
    assert alone.valid.all()
    (bad,) = alone.bad
    assert (bad.key, bad.reason) == (key, "its bytes have changed since it was packed")
    assert bad.shard.endswith(".tar")
    # The stand-in keeps the seed of its place, so that it is not the same picture twice.
    assert len(set(alone.seeds.tolist())) == 12
    assert not torch.equal(alone.images[5], alone.images[6])
    pairs = [trained(own_shard_set, World(r, 2, r, 2), data, last_step=1) for r in range(2)]
    ids = [i for rank in pairs for batch in rank for i in batch.sample_ids.tolist()]
    assert ids == alone.sample_ids.tolist()


def test_a_replacement_may_be_bad_too(own_shard_set):
    order = stream(own_shard_set, 12)
    for position in (5, 6, 7):
        damage(own_shard_set, "train", order[position])
    batch = trained(
        own_shard_set, World(), settings_of(max_bad_fraction=0.5), micro_batch=12, accumulation=1,
        last_step=1,
    )[0]  # fmt: skip
    stand_in = batch.sample_ids.tolist()[5]
    assert stand_in not in order
    assert batch.sample_ids.tolist() == [*order[:5], *[stand_in] * 3, *order[8:]]
    assert len(batch.bad) == 3 + 2 + 1


def test_more_bad_samples_than_allowed_stop_the_run(own_shard_set):
    damage(own_shard_set, "train", stream(own_shard_set, 12)[0])
    with pytest.raises(DataError, match=r"1 of \d+ samples read cannot be used.*max_bad_fraction"):
        trained(own_shard_set, data=settings_of(max_bad_fraction=0.0))
    assert trained(own_shard_set, data=settings_of(max_bad_fraction=0.01))


def test_the_budget_is_judged_over_many_samples():
    def batch(good: int, bad: int) -> Batch:
        ids = torch.zeros(good, dtype=torch.int64)
        images = torch.zeros((good, 3, 1, 1), dtype=torch.uint8)
        reasons = (BadSample("a.tar", "k", "r"),) * bad
        return Batch(images, ids, ids, ids, ids == 0, reasons)

    count = loader._BadCount("train", 0.001)
    count.add(batch(95, 5))
    with pytest.raises(DataError, match="6 of 101"):
        count.add(batch(0, 1))
    at_the_limit = loader._BadCount("train", 0.001)
    at_the_limit.add(batch(99_900, 100))
    with pytest.raises(DataError, match=r"a\.tar, k: r"):
        loader._BadCount("train", 0.001).add(batch(99_800, 200))


def test_shards_of_nothing_but_bad_samples_end(own_shard_set):
    for sample_id in range(42):
        damage(own_shard_set, "train", sample_id)
    with pytest.raises(DataError, match="in a row cannot be used"):
        trained(own_shard_set, data=settings_of(max_bad_fraction=1.0))


def test_an_undecodable_image_is_a_bad_sample(own_shard_set, monkeypatch):
    from pretrain.data import source
    from pretrain.data.decode import ImageError

    def refuses(data, *arguments):
        raise ImageError("damaged: so it is")

    monkeypatch.setattr(source, "eval_image", refuses)
    batches = evaluated(own_shard_set, data=settings_of(max_bad_fraction=1.0))
    assert not any(batch.valid.any() for batch in batches)
    assert batches[0].bad[0].key == "000000_000000"
    assert batches[0].bad[0].reason == "damaged: so it is"


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 4, 15, 40])
def test_evaluation_covers_the_split_exactly(shard_set, ranks, batch):
    by_rank = [evaluated(shard_set, World(r, ranks, r, ranks), batch=batch) for r in range(ranks)]
    assert len({len(batches) for batches in by_rank}) == 1
    ids: list[int] = []
    for batches in by_rank:
        for one in batches:
            assert one.images.shape == (batch, 3, SIZE, SIZE)
            ids += one.sample_ids[one.valid].tolist()
            assert (one.sample_ids[~one.valid] == -1).all()
            assert not one.images[~one.valid].any()
            assert not one.labels[~one.valid].any()
    assert sorted(ids) == list(range(15))
    if ranks == 1:
        assert ids == list(range(15))


def test_evaluation_images_are_whole_and_unshuffled(shard_set):
    reader = ShardReader(shard_set.root, shard_set.split("validation").shards, 3)
    for resize in (None, 20):
        (batch,) = evaluated(shard_set, batch=15, resize=resize)
        for i in range(15):
            sample = reader.read(i)
            assert batch.labels[i] == sample.label
            assert torch.equal(batch.images[i], eval_image(sample.data, SIZE, resize))


def test_bad_samples_in_evaluation_are_left_out_not_replaced(own_shard_set):
    damage(own_shard_set, "validation", 2)
    (batch,) = evaluated(own_shard_set, batch=15, data=settings_of(max_bad_fraction=0.1))
    assert batch.valid.tolist() == [i != 2 for i in range(15)]
    assert len(batch.bad) == 1


def test_a_damaged_index_is_one_clear_line(own_shard_set):
    for shard in own_shard_set.split("train").shards:
        path = index_path(own_shard_set.root, shard)
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DataError, match=r"\.idx: index damaged") as caught:
        trained(own_shard_set)
    assert "\n" not in str(caught.value)


def test_missing_shards_are_found_before_the_first_batch(own_shard_set):
    (own_shard_set.root / own_shard_set.split("train").shards[0].file).unlink()
    with pytest.raises(DataError, match="No such file"):
        trained(own_shard_set)


def test_batch_sizes_must_agree(shard_set):
    with pytest.raises(DataError, match=r"global batch 13: expected.*3 \* 2 \* 2"):
        trained(shard_set, global_batch=13)


def test_unknown_splits_are_refused(shard_set):
    with pytest.raises(DataError, match="no split 'nothing'"):
        trained(shard_set, data=settings_of(train_split="nothing"))


def test_a_crop_larger_than_the_image_is_refused(shard_set):
    with pytest.raises(DataError, match=r"eval\.resize: 10 is smaller than the image size 16"):
        evaluated(shard_set, resize=10)


def test_memory_that_cannot_be_had_is_refused(shard_set):
    data = settings_of(prefetch_batches=2**40)
    with pytest.raises(DataError, match=r"MiB of shared memory cannot be had.*workers_per_rank"):
        trained(shard_set, data=data.model_copy(update={"workers_per_rank": 2}))


def test_closed_iterators_yield_nothing(shard_set):
    batches = train_batches(
        shard_set, settings_of(), AugmentConfig(), seed=0, image_size=SIZE, global_batch=6,
        micro_batch=6, accumulation=1, world=World(), first_step=0, last_step=5,
    )  # fmt: skip
    next(batches)
    batches.close()
    assert list(batches) == []


def test_crops_are_resized_as_configured(shard_set):
    of_filter = {}
    for name in ("bicubic", "bilinear"):
        with train_batches(
            shard_set, settings_of(), AugmentConfig(crop_filter=name), seed=0, image_size=SIZE,
            global_batch=6, micro_batch=6, accumulation=1, world=World(), first_step=0, last_step=1,
        ) as batches:  # fmt: skip
            of_filter[name] = next(batches)
    bicubic, bilinear = (of_filter[name].images.int() for name in ("bicubic", "bilinear"))
    assert torch.equal(of_filter["bicubic"].sample_ids, of_filter["bilinear"].sample_ids)
    difference = (bicubic - bilinear).abs().float()
    assert 0 < difference.mean() < 20  # the same crops, a little smoother


def test_manifest_changes_do_not_reach_other_splits(shard_set):
    train_only = replace(shard_set, splits={"train": shard_set.split("train")})
    assert train_only.fingerprint("train") == shard_set.fingerprint("train")


@pytest.mark.parametrize("in_use", [True, False])
def test_batches_are_pinned_where_this_process_uses_a_gpu(shard_set, monkeypatch, in_use):
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone()
    )
    (batch,) = trained(shard_set, last_step=1, micro_batch=6, accumulation=1)
    assert len(pinned) == (5 if in_use else 0)
    assert batch.images.any()


def test_batches_keep_what_they_hold(shard_set):
    """The memory that workers fill is used again and again; a batch is a copy."""
    batches = trained(shard_set)
    again = trained(shard_set)
    for one, other in zip(batches, again, strict=True):
        assert torch.equal(one.images, other.images)
    assert len({batch.images.data_ptr() for batch in batches}) == len(batches)
