"""The optimizer's parameter groups: what decays, and at which fraction of the learning rate."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from pretrain.errors import EngineError


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    weight_decay: float,
    undecayed: Collection[str],
    layer_decay: float = 1.0,
    depths: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Split parameters into the optimizer's decayed and undecayed groups, empty ones left out.

    With layer-wise decay there are two groups per layer, the deepest layer's last. A group's
    ``lr_scale`` is what its learning rate is multiplied by: ``layer_decay`` to the power of its
    distance from the deepest layer (ELECTRA, arXiv 2003.10555, section 3; BEiT, arXiv 2106.08254).
    Its ``parameter_names`` are those of its ``params``; ``decayed`` says which of the two it is.

    Args:
        parameters: every parameter of the model by name.
        weight_decay: of the decayed groups.
        undecayed: names without weight decay, as the model says.
        layer_decay: factor from each layer to the one below it; 1 makes no layers.
        depths: layer of every parameter by name, the one nearest the image lowest; may be left out
            where ``layer_decay`` is 1.

    Raises:
        EngineError: a frozen parameter, whose state would be missing from every checkpoint; an
            undecayed name that the model does not have; or a parameter without a depth.
    """
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise EngineError(
            f"parameter {frozen[0]}: expected a trained parameter, got a frozen one; "
            "make it a buffer or train it"
        )
    unknown = sorted(set(undecayed) - parameters.keys())
    if unknown:
        raise EngineError(f"undecayed: no parameter is named {unknown[0]}")
    layers = dict.fromkeys(parameters, 0) if layer_decay == 1.0 else _layers(parameters, depths)
    groups = []
    for layer in sorted(set(layers.values())):
        members = [name for name in parameters if layers[name] == layer]
        for group, decays in (("decayed", True), ("undecayed", False)):
            names = [name for name in members if (name not in undecayed) == decays]
            groups.append(
                {
                    "params": [parameters[name] for name in names],
                    "parameter_names": names,
                    "decayed": decays,
                    "weight_decay": weight_decay if decays else 0.0,
                    "lr_scale": layer_decay ** (max(layers.values()) - layer),
                    "name": group if layer_decay == 1.0 else f"layer {layer} {group}",
                }
            )
    return [group for group in groups if group["params"]]


def _layers(parameters: Collection[str], depths: Mapping[str, int] | None) -> dict[str, int]:
    known = depths or {}
    without = [name for name in parameters if name not in known]
    if without:
        raise EngineError(
            f"optim.layer_decay: the model gives no depth for parameter {without[0]}; "
            "give optim.layer_decay=1.0"
        )
    return {name: known[name] for name in parameters}
