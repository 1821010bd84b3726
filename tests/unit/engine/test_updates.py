"""Samples of flats: exact where they are whole, near where they are not, blind to nothing."""

import pytest
import torch

from pretrain.engine.shards import Piece
from pretrain.engine.updates import SAMPLED_ELEMENTS, Updates


def piece(name, flat, offset, count):
    return Piece(name, 0, count, flat, offset)


def ratios(squares):
    return (squares[0] / squares[1]).sqrt().tolist()


def test_small_pieces_are_taken_whole_and_others_left_out():
    flat = torch.tensor([9.0, 3.0, 4.0, 9.0, 1.0, 9.0])
    pieces = [piece("a", flat, 1, 2), piece("head", flat, 3, 1), piece("b", flat, 4, 1)]
    updates = Updates(pieces, {"a": 0, "b": 2, "elsewhere": 3})
    updates.before()
    flat += torch.tensor([7.0, 0.0, 0.5, 7.0, 2.0, 7.0])
    assert updates.after().tolist() == [[0.25, 0.0, 4.0, 0.0], [25.0, 0.0, 1.0, 0.0]]


def test_a_rank_without_pieces_adds_nothing():
    updates = Updates([], {"a": 0, "b": 1})
    updates.before()
    assert updates.after().tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_large_pieces_are_near_and_none_of_their_columns_is_passed_over():
    rows, columns = 3 * SAMPLED_ELEMENTS, 64
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    flat = matrix.flatten()
    updates = Updates([piece("a", flat, 0, flat.numel())], {"a": 0})
    updates.before()
    change = torch.zeros_like(matrix)
    change[:, 5] = 0.1
    flat += change.flatten()
    exact = float(change.norm() / matrix.norm())
    # 2,048 / 64 of the elements looked at moved: a deviation of 9 % of the norm.
    assert ratios(updates.after()) == pytest.approx([exact], rel=0.3)


def test_looking_waits_for_no_device(monkeypatch):
    flat = torch.ones(10)
    updates = Updates([piece("a", flat, 0, 10)], {"a": 0})
    for name in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, None)
    updates.before()
    updates.after()
