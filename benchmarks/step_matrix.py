"""What `benchmarks/step.py` measures: cells of a matrix, and who takes turns in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Literal

from pretrain.config.load import load_run
from pretrain.config.schema import RunConfig
from pretrain.models.variants import Shape, shape_of

Library = Literal["engine", "plain", "timm", "timm_fused", "torchvision", "transformers"]
LIBRARIES: dict[Library, str] = {
    "engine": "swin-pretrain",
    "plain": "our network, plain torch",
    "timm": "timm",
    "timm_fused": "timm, its fused attention",
    "torchvision": "torchvision",
    "transformers": "transformers, sdpa",
}
"""How each is called in the tables. All but the first take `plain_training.plain_step`."""
OUR_PATHS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "plain": ("engine.attention=plain", "engine.layer_norm=torch", "engine.cross_entropy=plain"),
    "fused": ("engine.attention=fused", "engine.layer_norm=fused", "engine.cross_entropy=fused"),
}
"""Of each path of ours through a step, the settings that choose it."""
MODELS: dict[str, tuple[str, ...]] = {
    "swin_l": (),
    "swin_b": (),
    "swin_s": (),
    "swin_t": (),
    "small": ("model.variant=swin_t", "model.embed_dim=48"),
}
"""Of each network, the settings that its name does not say."""


@dataclass(frozen=True)
class Cell:
    """What the subjects of one table have in common.

    Attributes:
        model: one of `MODELS`.
        image_size: side of the images, pixels; windows are a 32nd of it, as published.
        micro_batch: images of a step.
        precision: of training.
        recompute: activation checkpointing of every stage.
        num_classes: outputs of the head.
    """

    model: str
    image_size: int
    micro_batch: int
    precision: Literal["bf16", "fp16", "fp32"]
    recompute: str
    num_classes: int

    @property
    def title(self) -> str:
        """What stands above the table."""
        return (
            f"{self.model} at {self.image_size} pixels, windows of {self.image_size // 32}, "
            f"{self.num_classes:,} classes, {self.precision}, micro-batch {self.micro_batch}, "
            f"activation checkpointing {self.recompute}"
        )

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        """Return the recipe of ImageNet-22K under the cell's settings.

        Raises:
            ConfigError: they do not go together.
        """
        settings = {
            "model.variant": self.model,
            "model.image_size": self.image_size,
            "model.window_size": self.image_size // 32,
            "model.num_classes": self.num_classes,
            "engine.precision": self.precision,
            "engine.activation_checkpointing": self.recompute,
            "augment.mix_group": gcd(64, self.micro_batch),
        }
        own = [f"{key}={value}" for key, value in settings.items()]
        return load_run("swin_l_22k", [*own, *MODELS[self.model], *overrides])

    @property
    def is_of_goals(self) -> bool:
        """Whether the goals are about it; for any micro-batch."""
        numbers = (self.image_size, self.num_classes, self.precision, self.recompute)
        return self.model == "swin_l" and numbers == (224, 21841, "bf16", "none")

    @property
    def shape(self) -> Shape:
        """The network's."""
        return shape_of(self.config().model)


@dataclass(frozen=True)
class Subject:
    """What takes turns with others in a cell.

    Attributes:
        library: whose network, and whose step.
        compiled: by ``torch.compile``: our networks block by block, the others' whole.
        path: one of `OUR_PATHS`; "" for other libraries, which have their own.
    """

    library: Library
    compiled: bool = False
    path: str = ""

    @property
    def label(self) -> str:
        """What the tables call it."""
        path = f", {self.path}" if self.path else ""
        return f"{LIBRARIES[self.library]}{path}, {'compiled' if self.compiled else 'eager'}"


def cells(
    models: Sequence[str],
    image_sizes: Sequence[int],
    micro_batches: Sequence[int] | None,
    precisions: Sequence[Literal["bf16", "fp16", "fp32"]],
    recomputes: Sequence[str],
    num_classes: int,
) -> list[Cell]:
    """Return every combination, in the order given; the first of each list comes first.

    Args:
        models: of `MODELS`.
        image_sizes: sides, pixels.
        micro_batches: images of a step; None takes what suits the image's size on a large GPU.
        precisions: of training.
        recomputes: activation checkpointing.
        num_classes: outputs of every head.
    """
    return [
        Cell(model, size, micro_batch, precision, recompute, num_classes)
        for recompute, size, precision, model in product(
            recomputes, image_sizes, precisions, models
        )
        for micro_batch in micro_batches or [128 if size <= 256 else 32]
    ]


def subjects(
    libraries: Sequence[Library], modes: Sequence[str], paths: Sequence[str]
) -> list[Subject]:
    """Return what takes turns in every cell.

    Args:
        libraries: of `LIBRARIES`.
        modes: "eager", "compiled" or both.
        paths: of `OUR_PATHS`, for the engine alone.
    """
    return [
        Subject(library, mode == "compiled", path)
        for mode, library in product(modes, libraries)
        for path in (paths if library == "engine" else ("",))
    ]
