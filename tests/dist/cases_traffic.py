"""What the ranks of `test_traffic_ranks` do: count what a step's collectives carry."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from deepspeed.comm import comm
from engine_parity import make_engine, train

from pretrain.engine import shards
from pretrain.world import World

STEPS_BEFORE = 2
"""Stage 3 learns in which order it needs its weights."""
NUMBERS_MAX = 64
"""Norms and flags; TinyNet's parameters and their parts come together in larger tensors."""


def counted(world: World, stage: int, accumulation: int, precision: str, dtype: str) -> Any:
    """Bytes of each kind of collective in one step, parameters, and those whole after a forward."""
    engine = make_engine(
        world,
        stage,
        accumulation=accumulation,
        clip=1.0,
        precision=precision,
        reduce_dtype=dtype,
    )
    train(engine, world, range(STEPS_BEFORE), accumulation)
    carried: Counter[str] = Counter()

    def counting(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted_call(*arguments: Any, **named: Any) -> Any:
            tensors = list(_tensors([*arguments, *named.values()]))
            whole = max(tensors, key=torch.Tensor.numel)
            if whole.numel() > NUMBERS_MAX:
                carried[kind] += whole.numel() * whole.element_size()
            return function(*arguments, **named)

        return counted_call

    whole_parameters: list[int] = []
    network = engine._zero.module
    network.register_forward_hook(lambda *_: whole_parameters.append(_elements(network)))
    with ExitStack() as patches:
        for name in shards.COLLECTIVES:
            function = counting(_kind(name), getattr(comm.cdb, name))
            patches.enter_context(mock.patch.object(comm.cdb, name, function))
        train(engine, world, range(STEPS_BEFORE, STEPS_BEFORE + 1), accumulation)
    parameters = sum(_numel(shape) for shape in engine.parameter_shapes().values())
    engine.close()
    return {"carried": dict(carried), "parameters": parameters, "whole": whole_parameters}


def suite(world: World, cases: list[list[Any]]) -> list[Any]:
    return [counted(world, *case) for case in cases]


def _tensors(values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _kind(name: str) -> str:
    return name.removesuffix("_into_tensor").removesuffix("_tensor")


def _elements(network: torch.nn.Module) -> int:
    """Elements that this rank holds at the moment; of divided parameters none."""
    return sum(parameter.numel() for parameter in network.parameters())


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
