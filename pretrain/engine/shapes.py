"""Shapes of a model's parameters, which what is saved of them must have too."""

from collections.abc import Mapping

from torch import nn

from pretrain.errors import EngineError

Shapes = Mapping[str, tuple[int, ...]]
"""Full shape of every parameter, by name."""


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, by name.

    Raises:
        EngineError: a name cannot be part of a fragment's key.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    unusable = [name for name in shapes if "|" in name]
    if unusable:
        raise EngineError(f"parameter names: '|' separates the parts of a key, got {unusable}")
    return shapes


def check_shapes(of_model: Shapes, saved: Shapes) -> None:
    """Hold saved parameters against the model's.

    Raises:
        EngineError: with a line for each that differs.
    """
    names = sorted(of_model.keys() | saved.keys())
    wrong = [
        f"parameter {name}: expected {of_model.get(name, 'none')} as in the model, "
        f"got {saved.get(name, 'none')} in the checkpoint"
        for name in names
        if of_model.get(name) != saved.get(name)
    ]
    if wrong:
        raise EngineError("\n".join(wrong))
