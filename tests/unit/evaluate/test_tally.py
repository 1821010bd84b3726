"""Every count of a split against plain arithmetic over sorted logits."""

import math
from collections import Counter

import pytest
import torch

from pretrain import dist
from pretrain.errors import DataError
from pretrain.evaluate.classes import LEFT_OUT, ClassMap, match_classes
from pretrain.evaluate.tally import Confusion, MappedBatch, Mapping, Mistake, Tally
from pretrain.world import World

CPU = torch.device("cpu")
ROWS, CLASSES = 60, 9


@pytest.fixture(autouse=True)
def alone():
    dist.initialize(World(), CPU, timeout_seconds=30)
    yield
    dist.shutdown()


@pytest.fixture
def drawn():
    """Logits with ties and a NaN row, labels, validity and any number of ReaL labels."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(-3, 4, (ROWS, CLASSES), generator=generator).float()
    logits[7, 2] = math.nan
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    valid = torch.rand(ROWS, generator=generator) < 0.8
    valid[7] = True
    real = torch.randint(LEFT_OUT, CLASSES, (ROWS, 2), generator=generator).tolist()
    real[3] = [LEFT_OUT, LEFT_OUT]
    return logits, labels, valid, real


def order_of(row):
    return sorted(range(CLASSES), key=lambda index: (-row[index], index))


def test_all_counts_are_those_of_sorting(drawn):
    logits, labels, valid, real = drawn
    ids = torch.where(valid, torch.arange(ROWS), -1)
    tally = Tally(CLASSES, CPU, real)
    for part in torch.arange(ROWS).split(16):
        tally.add(logits[part], labels[part], valid[part], ids[part])
    total = tally.total()

    wrong, top1, top5, real1, real5, judged = Counter(), Counter(), Counter(), 0, 0, 0
    for row in torch.arange(ROWS)[valid].tolist():
        label, broken = int(labels[row]), row == 7
        answers = {answer for answer in real[row] if answer != LEFT_OUT}
        order = [] if broken else order_of(logits[row].tolist())
        top1[label] += order[:1] == [label]
        top5[label] += label in order[:5]
        if order and order[0] != label:
            wrong[label, order[0]] += 1
        judged += bool(answers)
        real1 += bool(answers & set(order[:1]))
        real5 += bool(answers & set(order[:5]))
    assert [(c.top1, c.top5) for c in total.by_class] == [
        (top1[y], top5[y]) for y in range(CLASSES)
    ]
    assert [c.images for c in total.by_class] == labels[valid].bincount(minlength=CLASSES).tolist()
    assert total.overall.top1_fraction == sum(top1.values()) / int(valid.sum())
    assert total.overall.top5_fraction == sum(top5.values()) / int(valid.sum())
    assert list(total.confusions) == [
        Confusion(label, predicted, images)
        for (label, predicted), images in sorted(
            wrong.items(), key=lambda item: (-item[1], item[0])
        )
    ]
    assert total.real is not None
    assert total.real.images == judged < int(valid.sum())
    assert total.real.top1_fraction == real1 / judged
    assert total.real.top5_fraction == real5 / judged


def test_nothing_depends_on_the_cut_into_batches(drawn):
    logits, labels, valid, real = drawn
    logits[7] = 0
    totals = []
    for size in (1, 7, 60):
        tally = Tally(CLASSES, CPU, real)
        for part in torch.arange(ROWS).split(size):
            tally.add(logits[part], labels[part], valid[part], part)
        totals.append(tally.total())
    assert totals[0] == totals[1] == totals[2]


def test_mistakes_are_the_first_of_each_class_in_manifest_order(drawn):
    logits, labels, valid, _ = drawn
    ids = torch.arange(ROWS).flip(0)
    tally = Tally(CLASSES, CPU)
    for part in torch.arange(ROWS).split(16):
        tally.add(logits[part], labels[part], valid[part], ids[part])
    expected = []
    for label in (4, 1):
        rows = [row for row in torch.arange(ROWS)[valid].tolist() if int(labels[row]) == label]
        answers = [(int(ids[row]), order_of(logits[row].tolist())[0]) for row in rows if row != 7]
        wrong = sorted((sample, best) for sample, best in answers if best != label)
        assert len(wrong) > 2, "the case says nothing"
        expected += [Mistake(sample, label, best) for sample, best in wrong[:2]]
    assert tally.mistakes([4, 1], 2) == expected
    assert Tally(CLASSES, CPU).mistakes([0], 2) == []


def test_logits_and_labels_are_put_in_terms_of_the_classes_evaluated():
    classes = ClassMap((4, 1), (1, LEFT_OUT, 0), ("b", "a"), ("x",))
    mapping = Mapping(classes, CPU)
    assert mapping.logits(torch.arange(10.0).view(2, 5)).tolist() == [[4, 1], [9, 6]]
    labels = torch.tensor([0, 1, 2, 77])
    valid = torch.tensor([True, True, True, False])
    batch = mapping.batch(MappedBatch(torch.zeros(4), labels, torch.arange(4), valid))
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.labels[batch.valid].tolist() == [1, 0]
    with pytest.raises(DataError, match="labels run from 3 to 3, but"):
        mapping.batch(MappedBatch(*map(torch.tensor, ([0], [3], [0], [True]))))


def match(model, wanted, *, leave_out=False):
    return match_classes(model, wanted, what="set", leave_out_unknown=leave_out, switch="--leave")


def test_classes_are_matched_by_id_whatever_their_order():
    found = match(("d", "a", "c", "b"), ("a", "b", "c"))
    assert found == ClassMap((1, 3, 2), (0, 1, 2), ("a", "b", "c"), ())


def test_unknown_classes_are_named_or_left_out():
    with pytest.raises(DataError, match="set: the model does not know 2 of its 4 classes: x, y;"):
        match(("b", "a"), ("a", "x", "b", "y"))
    found = match(("b", "a"), ("a", "x", "b", "y"), leave_out=True)
    assert found == ClassMap((1, 0), (0, LEFT_OUT, 1, LEFT_OUT), ("a", "b"), ("x", "y"))


def test_a_set_without_a_common_class_is_refused_even_so():
    with pytest.raises(DataError, match=r"knows none of its 2 classes, such as 0.*--numbered-by"):
        match(("n1", "n2"), ("0", "1"), leave_out=True)
    with pytest.raises(DataError, match="knows none of its 1 classes, such as x; the model's"):
        match(("n1", "n2"), ("x",), leave_out=True)
