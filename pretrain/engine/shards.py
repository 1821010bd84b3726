"""Where ZeRO keeps this rank's part of every parameter: the only reader of DeepSpeed's tensors.

The attributes read here are private to DeepSpeed 0.19.8. A test asserts that the pieces of all
ranks cover every element of every parameter exactly once in each stage.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means of the gradient and of its square."""
KINDS = ("master", *MOMENTS)
"""What is kept of every parameter: its fp32 master weight and the moments."""


@dataclass(frozen=True)
class Piece:
    """A run of one parameter's elements that this rank owns.

    Attributes:
        name: name of the parameter in the model.
        start: first element, counted in the flattened parameter.
        count: number of elements.
        flat: fp32 master weights of this rank and group, of which this piece is a part.
        offset: first element, counted in ``flat``.
    """

    name: str
    start: int
    count: int
    flat: Tensor
    offset: int


def pieces(zero: Any) -> list[Piece]:
    """List what this rank owns, in the model's parameter order. Any rank.

    Args:
        zero: the DeepSpeed engine, in ZeRO stage 1, 2 or 3.
    """
    locate = _locate_stage_3 if zero.zero_optimization_stage() == 3 else _locate_stage_1_2
    found = (locate(zero, name, parameter) for name, parameter in zero.module.named_parameters())
    return [piece for piece in found if piece is not None and piece.count > 0]


def _locate_stage_1_2(zero: Any, name: str, parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = zero.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    in_flat, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Piece(name, in_parameter.start, in_flat.numel, flat, in_flat.start)


def _locate_stage_3(zero: Any, name: str, parameter: Any) -> Piece:
    optimizer = zero.optimizer
    group, offset, width = optimizer.grad_position[optimizer.get_param_id(parameter)]
    # Each rank owns `width` elements; the last ranks' may lie beyond the parameter's end.
    start = width * torch.distributed.get_rank(zero.data_parallel_group)
    count = min(width, parameter.ds_numel - start)
    return Piece(name, start, count, optimizer.fp32_partitioned_groups_flat[group], offset)


def values(zero: Any, piece: Piece, kind: str) -> Tensor:
    """Return the live fp32 elements of a piece, as a view on ZeRO's memory: writes reach it.

    Args:
        zero: the DeepSpeed engine.
        piece: one of `pieces`.
        kind: one of `KINDS`.
    """
    source = piece.flat if kind == "master" else _adam_state(zero, piece.flat)[kind]
    return source.detach().narrow(0, piece.offset, piece.count)


def _adam_state(zero: Any, flat: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a flat, as AdamW's own first step would create it."""
    state = zero.optimizer.optimizer.state[flat]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(flat, requires_grad=False)
    return state


def flats(zero: Any) -> list[Tensor]:
    """Return this rank's fp32 master weights, one flat tensor per group, padding included."""
    optimizer = zero.optimizer
    if zero.zero_optimization_stage() == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def set_optimizer_step(zero: Any, optimizer_step: int) -> None:
    """Tell AdamW how many steps its moments have seen (its bias correction). Any rank."""
    for flat in flats(zero):
        _adam_state(zero, flat)["step"].fill_(optimizer_step)


def refresh_weights(zero: Any) -> None:
    """Bring the weights that the model computes with up to the masters. Every rank."""
    optimizer = zero.optimizer
    if zero.zero_optimization_stage() != 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def whole_tensors(zero: Any) -> list[Tensor]:
    """Return the parameters and buffers that every rank holds whole and computes with."""
    parameters = list(zero.module.parameters())
    if zero.zero_optimization_stage() == 3:
        parameters = [parameter for parameter in parameters if parameter.ds_persist]
    return [*parameters, *zero.module.buffers()]
