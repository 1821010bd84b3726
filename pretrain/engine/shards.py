"""Everything private to DeepSpeed that we touch, and nothing else of the project does.

Mostly where ZeRO keeps this rank's part of every parameter. `check_known` compares an engine with
what is used here before it is used, so that another version of DeepSpeed is refused by name. A test
asserts that the pieces of all ranks cover every element of every parameter exactly once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from pretrain.engine.optimizers import MOMENTS, adam_state, set_step
from pretrain.errors import EngineError

KINDS = ("master", *MOMENTS)
"""What is kept of every parameter: its fp32 master weight and the moments."""

WRITTEN_FOR = "0.19.8"
"""The version of DeepSpeed whose privates these are."""
OF_PARAMETERS = {1: ("_hp_mapping",), 2: ("_hp_mapping",), 3: ("ds_numel", "ds_persist")}
OF_MAPPINGS = ("param_group_index", "hp_fragment_address", "lp_fragment_address")
OF_ADDRESSES = ("start", "numel")
_STAGE_1_2 = (
    "single_partition_of_fp32_groups",
    "update_lp_params",
    "step",
    "check_grad_overflow",
    "scaled_global_norm",
    "averaged_gradients",
    "dp_process_group",
)
_STAGE_3 = (
    "fp32_partitioned_groups_flat",
    "grad_position",
    "get_param_id",
    "persistent_parameters",
    "_partition_all_parameters",
    "_reassign_or_swap_out_partitioned_parameters",
)
_QUESTION = "is_invalid_grad_norm"
"""What asks the host whether a norm is finite: a function of the module of ZeRO's optimizer."""
_ANY_STAGE = ("optimizer", "torch_autocast_gradscaler", "override_loss_scale")
OF_OPTIMIZERS = {1: _ANY_STAGE + _STAGE_1_2, 2: _ANY_STAGE + _STAGE_1_2, 3: _ANY_STAGE + _STAGE_3}


COLLECTIVES = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter",
    "reduce_scatter_tensor",
)
"""Methods of its communication backend that ZeRO's steps go through."""


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


def check_known(zero: Any) -> None:
    """Refuse a DeepSpeed engine that is not built as the one this was written for. Any rank.

    Raises:
        EngineError: naming what is missing.
    """
    stage = zero.zero_optimization_stage()
    parameters = list(zero.module.parameters())
    _expect(zero, "the engine", ("data_parallel_group",))
    _expect(zero.optimizer, f"its optimizer in stage {stage}", OF_OPTIMIZERS[stage])
    for parameter in parameters:
        _expect(parameter, f"a parameter in stage {stage}", OF_PARAMETERS[stage])
    mappings = [value._hp_mapping for value in parameters] if stage != 3 else []
    for mapping in (mapping for mapping in mappings if mapping is not None):
        _expect(mapping, "a parameter's mapping", OF_MAPPINGS)
        for address in (mapping.hp_fragment_address, mapping.lp_fragment_address):
            _expect(address, "a fragment's address", OF_ADDRESSES)


def check_communication() -> None:
    """Refuse a DeepSpeed whose collectives do not go where `collectives_through` looks. Any rank.

    Raises:
        EngineError: naming what is missing.
    """
    from deepspeed.comm import comm

    _expect(comm, "deepspeed.comm.comm", ("cdb",))
    _expect(comm.cdb, "its backend", COLLECTIVES)


@contextmanager
def collectives_through(
    around: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Let what ``around`` returns take the place of each collective inside a ``with`` block.

    Every collective of ZeRO's, of this rank; those of the project go past. Any rank.
    """
    from deepspeed.comm import comm

    backend: Any = comm.cdb
    for name in COLLECTIVES:
        setattr(backend, name, around(getattr(backend, name)))
    try:
        yield
    finally:
        for name in COLLECTIVES:
            delattr(backend, name)  # what is left is the class's own


def _expect(thing: object, what: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise EngineError(_moved(f"{what} has no {', '.join(missing)}"))


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
    master = kind == "master"
    source = piece.flat if master else adam_state(zero.optimizer.optimizer, piece.flat)[kind]
    return source.detach().narrow(0, piece.offset, piece.count)


def flats(zero: Any) -> list[Tensor]:
    """Return this rank's fp32 master weights, one flat tensor per group, padding included."""
    optimizer = zero.optimizer
    if zero.zero_optimization_stage() == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def set_optimizer_step(zero: Any, optimizer_step: int) -> None:
    """Tell the optimizer how many steps its moments have seen. Any rank."""
    set_step(zero.optimizer.optimizer, flats(zero), optimizer_step)


def set_loss_scale(zero: Any, scale: float) -> None:
    """Let the next steps multiply the loss by this, and divide gradients and their norm by it.

    DeepSpeed's own scaler, which would come first, is taken away. Any rank.
    """
    zero.optimizer.torch_autocast_gradscaler = None
    zero.optimizer.override_loss_scale(scale)


def skip_on_device(zero: Any) -> None:
    """Have steps that are not finite skipped where they are computed, in ZeRO 1 and 2. Any rank.

    DeepSpeed waits for the device where it replaces a group's norm that is not finite, where it
    asks whether the whole norm is, and again for each group that it clips; in modes that we do not
    use it asks about the gradients too. So ours takes the norm's place, and nobody asks about what
    it returns: torch's fused AdamW is told by its ``found_inf``, with which its kernel changes
    nothing and takes its step count back. What ZeRO goes on to do with weights that did not change
    gives the same ones.

    Args:
        zero: the DeepSpeed engine, without offload, its optimizer torch's fused AdamW.

    Raises:
        EngineError: the question is not where it was.
    """
    optimizer = zero.optimizer
    module = sys.modules[type(optimizer).__module__]
    _expect(module, module.__name__, (_QUESTION,))
    question, step = getattr(module, _QUESTION), optimizer.step

    def step_unasked() -> None:
        setattr(module, _QUESTION, lambda norm: False)
        try:
            step()
        finally:
            setattr(module, _QUESTION, question)

    optimizer.check_grad_overflow = False
    optimizer.scaled_global_norm = lambda: _global_norm(optimizer)
    optimizer.step = step_unasked


def _global_norm(optimizer: Any) -> Tensor:
    """Norm of the gradient over all ranks, inf where it is not finite, which AdamW is told."""
    from deepspeed.comm import comm

    gradients = optimizer.averaged_gradients
    squares = torch.stack([_squares(gradients[group]) for group in sorted(gradients)])
    comm.all_reduce(squares, group=optimizer.dp_process_group)
    norm = torch.linalg.vector_norm(squares.sqrt())
    not_finite = ~norm.isfinite()
    adamw = optimizer.optimizer
    adamw.found_inf = not_finite.float()
    return norm.masked_fill(not_finite, torch.inf)


def _squares(gradients: Any) -> Tensor:
    """Sum of squares of one group's gradients on this rank, as DeepSpeed adds them up: fp32."""
    own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    own = own or list(gradients)  # a rank may own nothing but padding, which is zeros
    norms = torch._foreach_norm(own, 2, torch.float64)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).square().sum().float()


def was_applied(zero: Any) -> Tensor:
    """Whether the last step changed anything, after `skip_on_device`: bool scalar. Any rank."""
    adamw = zero.optimizer.optimizer
    return adamw.found_inf == 0


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


def set_world_group(group: torch_dist.ProcessGroup | None) -> None:
    """Give DeepSpeed the group that its collectives run in; None lets it make its own. Any rank."""
    from deepspeed.utils import groups

    if not hasattr(groups, "_WORLD_GROUP"):
        raise EngineError(_moved("deepspeed.utils.groups has no _WORLD_GROUP"))
    groups._WORLD_GROUP = group


def forbid_extensions(operations: ModuleType) -> None:
    """Stop a C++ build at start-up (tens of seconds, and an error without a compiler).

    It would be of a shared-memory operation that training never calls. DeepSpeed builds what this
    table names, so it is left empty.

    Args:
        operations: ``deepspeed.ops``.
    """
    operations.__dict__["__compatible_ops__"] = {}


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, as it will itself, without what would compile it.

    We never use that optimizer, but every ZeRO engine imports it, and its ``torch.compile``
    decorators load Inductor: two seconds of every rank's start.
    """
    from deepspeed.runtime import compiler

    if not hasattr(compiler, "compile"):
        raise EngineError(_moved("deepspeed.runtime.compiler has no compile"))
    original = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = original


def _moved(what: str) -> str:
    return (
        f"DeepSpeed {version('deepspeed')}: {what}; pretrain/engine/shards.py was written for "
        f"{WRITTEN_FOR}: pip install deepspeed=={WRITTEN_FOR}"
    )
