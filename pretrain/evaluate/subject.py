"""The model that is evaluated: weights of any layout that is read here, and what they stand for."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.convert.export import HEAD, Weights, Which, read_checkpoint_weights, read_weights
from pretrain.convert.read import load
from pretrain.convert.sources import source_of
from pretrain.errors import ModelError
from pretrain.evaluate.recorded import Recorded, is_ours, read_recorded
from pretrain.models.build import build
from pretrain.models.transfer import transfer
from pretrain.models.variants import check_image_size, shape_of

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        network: on its device, in evaluation mode.
        config: of the network, at the image size it is evaluated at.
        classes: WordNet ids in the order of the head's rows.
    """

    network: nn.Module
    config: ModelConfig
    classes: tuple[str, ...]

    def logits_of(self, device: torch.device, precision: Precision) -> Callable[[Tensor], Tensor]:
        """The forward pass: float images [B, 3, H, W] on ``device`` to fp32 logits [B, Y].

        Args:
            device: where the network is.
            precision: ``fp32`` without TF32, or autocast to bf16.
        """
        if precision == "fp32":
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False

        @torch.inference_mode()
        def logits(images: Tensor) -> Tensor:
            lower = torch.autocast(device.type, torch.bfloat16)
            with lower if precision == "bf16" else nullcontext():
                return self.network(images).float()

        return logits


def load_subject(
    weights: Weights,
    path: Path,
    *,
    classes: tuple[str, ...] | None,
    image_size: int | None,
    device: torch.device,
) -> Subject:
    """Build the network, fill it and put it on a device. Any rank, alone.

    Args:
        weights: read from ``path``.
        path: for messages.
        classes: WordNet ids in the order of the head's rows, for weights that do not say.
        image_size: side of the images; None takes the one it was trained at.
        device: where to compute.

    Raises:
        ModelError: the weights have no head or do not say their model, nobody or two say their
            classes, or they do not fit the model.
        ConfigError: the network cannot take images of that size.
    """
    if HEAD not in weights.tensors:
        raise ModelError(f"{path}: has no classifier (head.weight), so it has no accuracy")
    if weights.model is None:
        raise ModelError(
            f"{path}: does not say which model it is of; expected an export, a run or a checkpoint"
        )
    if weights.classes is not None and classes is not None and weights.classes != classes:
        raise ModelError(f"{path}: says its classes itself, and others; leave out --classes")
    classes = weights.classes or classes
    if classes is None:
        raise ModelError(
            f"{path}: does not say the WordNet ids of its head's rows; give --classes FILE, one id "
            "a line, or the shard set whose labels they are in the order of"
        )
    config = weights.model
    if image_size is not None:
        config = config.model_copy(update={"image_size": image_size})
    check_image_size(shape_of(config))
    network = build(config)
    try:
        transfer(weights.tensors, classes, network, classes, weights.model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    network.requires_grad_(requires_grad=False)
    return Subject(network.to(device).eval(), config, classes)


class Source(NamedTuple):
    """Weights as they were read, and what was beside them.

    Attributes:
        weights: the tensors, the model and, where known, the classes.
        recorded: what is kept beside them.
        which: whether they are ``raw`` or ``ema``.
        notes: one sentence for people on each choice that was made.
    """

    weights: Weights
    recorded: Recorded
    which: str
    notes: tuple[str, ...] = ()


def read_source(path: Path, which: Which | None) -> Source:
    """Read weights of any layout that `pretrain.convert.read` knows.

    Args:
        path: a file or a directory.
        which: the weights as they were trained, or their moving average; None takes what the
            source itself gives, such as what a run has exported, and raw ones from elsewhere.

    Raises:
        ModelError: nothing that is read here, or the source has not what was asked for.
        CheckpointError: it is damaged.
        ConfigError: a run's config.yaml is damaged.
    """
    recorded = read_recorded(path)
    if not is_ours(path):
        return _read_foreign(path, which)
    source = source_of(path)
    if which is not None and source != "export":
        return Source(read_checkpoint_weights(path, which), recorded, which)
    if which is not None and which != recorded.which:
        raise ModelError(
            f"{path}: holds {recorded.which} weights only, not {which}; leave --weights out, or "
            "name the run or one of its checkpoints"
        )
    return Source(read_weights(path), recorded, recorded.which)


def _read_foreign(path: Path, which: Which | None) -> Source:
    loaded = load(path, choice=which)
    ids, names = loaded.labels
    known = Recorded(class_names=dict(zip(ids, names, strict=True)) if ids and names else {})
    return Source(Weights(loaded.tensors, ids, loaded.model), known, which or "raw", loaded.notes)
