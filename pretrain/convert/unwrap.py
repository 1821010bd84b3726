"""From what a file holds to one network's tensors: containers, averages, prefixes undone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pretrain.convert.export import Which
from pretrain.errors import ModelError

_CONTAINERS = {
    "raw": ("model", "state_dict", "module", "model_state_dict", "net", "params"),
    "ema": ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
}
_PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.", "backbone.bottom_up.")
_COUNTERS = ("n_averaged", "num_updates", "decay", "num_batches_tracked", "initted", "step")
"""Names that averages keep beside the weights; scalars."""
_DETECTOR_PARTS = (
    "neck.",
    "rpn_head.",
    "roi_head.",
    "roi_heads.",
    "proposal_generator.",
    "bbox_head.",
    "mask_head.",
    "decode_head.",
    "auxiliary_head.",
    "panoptic_head.",
    "data_preprocessor.",
    "backbone.fpn_",
)
_MASKED_ENCODER = "encoder.patch_embed."
"""What the encoder of masked-image pre-training has, where it stands in a model with a decoder."""
_DETECTOR_NORMS = ("norm0.", "norm1.", "norm2.")
"""Norms of a detector's other stages, which a classifier does not have."""


class Unwrapped(NamedTuple):
    """The tensors of one network, and what was beside them.

    Attributes:
        tensors: under the names of their layout.
        notes: one sentence for people on each choice that was made.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def unwrap(objects: Mapping[str, Any], choice: Which | None, where: str) -> Unwrapped:
    """Find the tensors in what a file holds.

    Args:
        objects: as it was saved.
        choice: "raw" or "ema" weights; None takes the raw ones where there are any.
        where: what to call the file in messages.

    Raises:
        ModelError: there are none, or none of the kind that was asked for.
    """
    kinds = {kind: _container(objects, names) for kind, names in _CONTAINERS.items()}
    notes = []
    if choice is not None and any(kinds.values()) and kinds[choice] is None:
        raise ModelError(f"{where}: has no {choice} weights, only {_keys(objects)}")
    if choice == "ema" and not any(kinds.values()):
        raise ModelError(f"{where}: has no ema weights: the tensors lie in it bare")
    chosen = choice or ("raw" if kinds["raw"] or not kinds["ema"] else "ema")
    name = kinds[chosen]
    if kinds["raw"] and kinds["ema"]:
        notes.append(f"raw ({kinds['raw']}) and ema ({kinds['ema']}) weights: took {name}")
    held = _inside(objects[name]) if name else objects
    tensors = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
    tensors = _without_counters(tensors)
    if not tensors:
        raise ModelError(f"{where}: expected tensors, got {_keys(objects)}")
    tensors, of_masking = _without_masking(_without_prefixes(tensors))
    kept = _without_detector(_with_hub_prefix(tensors))
    if len(kept) < len(tensors):
        notes.append(f"left out {len(tensors) - len(kept)} tensors of a detector or segmenter")
    return Unwrapped(kept, (*notes, *of_masking))


def _without_masking(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take the network out of a masked-image pre-training model (SimMIM), with a note if it is one.

    Left out are the token that stands for hidden patches and the decoder of pixels, as the official
    code, mmpretrain, transformers and this program name them.
    """
    if not any(name.rpartition(".")[2] == "mask_token" for name in tensors):
        return tensors, ()
    kept = {
        name: value
        for name, value in tensors.items()
        if name.rpartition(".")[2] != "mask_token" and not name.startswith(("decoder.", "neck."))
    }
    if any(name.startswith(_MASKED_ENCODER) for name in kept):
        kept = _only(kept, _MASKED_ENCODER.partition(".")[0] + ".")
    left_out = len(tensors) - len(kept)
    note = f"of masked-image pre-training: left out {left_out} tensors of its token and decoder"
    return kept, (note,)


def _container(objects: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = objects.get(name)
        if isinstance(value, dict) and any(isinstance(v, Tensor) for v in _inside(value).values()):
            return name
    return None


def _inside(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """One container further where there is another, as averages that save themselves have."""
    for name in (*_CONTAINERS["raw"], *_CONTAINERS["ema"]):
        if isinstance(held.get(name), dict):
            return held[name]
    return held


def _without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (tensor.ndim == 0 and name.rpartition(".")[2] in _COUNTERS)
    }


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
                stripped = True
    return tensors


def _with_hub_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name a bare transformers backbone's tensors as inside its classifier."""
    if "embeddings.patch_embeddings.projection.weight" not in tensors:
        return tensors
    hub = "swinv2" if any("continuous_position_bias" in name for name in tensors) else "swin"
    return {f"{hub}.{name}": value for name, value in tensors.items()}


def _without_detector(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep a detector's backbone; under official names where it has those."""
    if any(name.startswith("backbone.bottom_up.") for name in tensors):
        tensors = _only(tensors, "backbone.bottom_up.")
    elif any(name.startswith("backbone.layers.") for name in tensors):
        heads = {name: value for name, value in tensors.items() if name.startswith("head.")}
        tensors = _only(tensors, "backbone.") | heads
    tensors = {
        name: value for name, value in tensors.items() if not name.startswith(_DETECTOR_PARTS)
    }
    names = {name.removeprefix("backbone.") for name in tensors}
    if "norm3.weight" in names and "layers.0.blocks.0.norm1.weight" in names:
        tensors = {
            name.replace("norm3.", "norm.", 1) if name.startswith("norm3.") else name: value
            for name, value in tensors.items()
        }
    if not names.isdisjoint({"norm3.weight", "norm2.weight"}):
        tensors = {
            name: value
            for name, value in tensors.items()
            if not name.removeprefix("backbone.").startswith(_DETECTOR_NORMS)
        }
    return tensors


def _only(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _keys(objects: Mapping[str, Any]) -> str:
    names = [repr(str(name)) for name in objects]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) + more) or "nothing"
