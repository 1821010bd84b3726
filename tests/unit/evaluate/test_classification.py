"""Accuracy is counted exactly, whatever the padding, the ties and the number of classes."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import dist
from pretrain.errors import DataError
from pretrain.evaluate.classes import match_classes
from pretrain.evaluate.classification import EvalResult, result
from pretrain.evaluate.tally import Mapping, Tally, count_batches
from pretrain.metrics.names import check_declared
from pretrain.world import World

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeBatch:
    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    valid: torch.Tensor


def counts(logits, labels, valid=None):
    """Images, right in the first place, right in the first five, and the mean loss."""
    logits = torch.tensor(logits, dtype=torch.float32)
    valid = torch.ones(len(labels), dtype=torch.bool) if valid is None else torch.tensor(valid)
    tally = Tally(logits.shape[1], CPU)
    tally.add(logits, torch.tensor(labels), valid, torch.arange(len(labels)))
    total = tally.total()
    top1, top5 = (sum(getattr(row, key) for row in total.by_class) for key in ("top1", "top5"))
    return [total.overall.images, top1, top5, total.overall.loss]


def place_by_sorting(row, label):
    """Where a label stands: falling logits, equal ones by index. The definition, in Python."""
    return sorted(range(len(row)), key=lambda index: (-row[index], index)).index(label)


@pytest.fixture(autouse=True, scope="module")
def alone():
    dist.initialize(World(), CPU, timeout_seconds=30)
    yield
    dist.shutdown()


def test_the_sums_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 12, generator=generator)
    labels = torch.randint(0, 12, (64,), generator=generator)
    images, top1, top5, loss = counts(logits.tolist(), labels.tolist())
    assert images == 64
    assert top1 == (logits.argmax(1) == labels).sum()
    assert top5 == (logits.topk(5).indices == labels[:, None]).any(1).sum()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert loss == pytest.approx(losses.double().mean().item(), rel=1e-8)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([-2.0, 0.0, 0.5, math.inf]), min_size=7, max_size=7), min_size=1
    ),
    data=st.data(),
)
def test_ties_are_decided_by_the_index(rows, data):
    labels = [data.draw(st.integers(0, 6)) for _ in rows]
    places = [place_by_sorting(row, label) for row, label in zip(rows, labels, strict=True)]
    _, top1, top5, _ = counts(rows, labels)
    assert top1 == sum(place < 1 for place in places)
    assert top5 == sum(place < 5 for place in places)


def test_equal_logits_give_one_winner_and_five_places():
    assert counts([[1.0] * 8] * 8, list(range(8)))[:3] == [8, 1, 5]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_with_few_classes_every_label_is_among_the_five(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(20, classes, generator=generator).tolist()
    images, _, top5, _ = counts(logits, [row % classes for row in range(20)])
    assert images == top5 == 20


def test_padding_is_never_counted_whatever_it_holds():
    real = counts([[2.0, 1.0], [0.0, 3.0]], [0, 0])
    nan = math.nan
    padded = counts(
        [[2.0, 1.0], [nan, nan], [0.0, 3.0], [math.inf, 0.0]],
        [0, -1, 0, 10**9],
        [True, False, True, False],
    )
    assert padded == real


def test_nan_is_wrong_even_beside_a_high_logit():
    images, top1, top5, loss = counts([[9.0, math.nan], [9.0, 0.0]], [0, 0])
    assert (images, top1, top5) == (2, 1, 1)
    assert math.isnan(loss)


def batches_of(images, labels, size, padding=0):
    total = len(labels) + padding
    images = torch.cat((images, images[:1].expand(padding, -1, -1, -1)))
    labels = torch.cat((labels, torch.zeros(padding, dtype=torch.int64)))
    ids = torch.arange(total)
    columns = (images, labels, ids, ids < total - padding)
    return [FakeBatch(*part) for part in zip(*(c.split(size) for c in columns), strict=True)]


def evaluate(logits_of, batches, prepare, classes):
    mapping = Mapping(identity(classes), CPU)
    tally = Tally(classes, CPU)
    count_batches(logits_of, batches, prepare, mapping, tally, CPU)
    return tally.total().overall


def identity(classes):
    ids = [f"n{position:08d}" for position in range(classes)]
    return match_classes(ids, ids, what="set", leave_out_unknown=False, switch="")


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (4, 0), (5, 3), (64, 41)])
def test_the_result_does_not_depend_on_batches_or_padding(size, padding):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (23, 3, 2, 2), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 8, (23,), generator=generator)
    head = torch.randn(12, 8, generator=generator)

    def evaluate_in(size, padding):
        return evaluate(
            lambda prepared: prepared.flatten(1) @ head,
            batches_of(images, labels, size, padding),
            lambda raw: raw.float() / 255,
            8,
        )

    got, whole = evaluate_in(size, padding), evaluate_in(23, 0)
    assert got.images == 23
    assert (got.top1_fraction, got.top5_fraction) == (whole.top1_fraction, whole.top5_fraction)
    assert got.loss == whole.loss, "sums of losses are exact in any order"


@pytest.mark.parametrize("label", [-1, 8])
def test_a_label_outside_the_classes_is_refused(label):
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="8 classes"):
        evaluate(
            lambda prepared: torch.zeros(len(prepared), 8),
            batches_of(images, torch.tensor([0, label]), 2),
            torch.Tensor.float,
            8,
        )


def test_no_image_is_refused():
    with pytest.raises(DataError, match="got none"):
        Tally(8, CPU).total()


def test_results_are_means_under_declared_names():
    got = result(50_000.0, 40_000.0, 48_000.0, 25_000.0)
    assert got == EvalResult(images=50_000, top1_fraction=0.8, top5_fraction=0.96, loss=0.5)
    check_declared(got.metrics())
    assert got.metrics()["eval/top1_fraction"] == 0.8
