"""What weights say about the images they were made for: kept in exports and runs. No torch."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pretrain.config.schema import AugmentConfig, PositiveInt, Section
from pretrain.convert.sources import CONFIG_NAME, OURS, is_export, read_config, source_of
from pretrain.errors import CheckpointError, ConfigError
from pretrain.run_directory import RunDirectory

INTERPOLATION = "bicubic, antialiased"
"""The one way `pretrain.data.crop` resizes; Pillow's, which published evaluation uses."""
SQUASHED_FROM = 384
"""Image size from which the published recipes squash instead of cutting out the centre."""
SHORT_SIDE_PER_SIZE = 256 / 224
_DEFAULTS = AugmentConfig()


class Preprocessing(Section):
    """What evaluation does to an image before the model sees it."""

    image_size: PositiveInt
    """Side of the square the model sees, pixels."""
    resize: PositiveInt | None
    """Short side before the centre is cut out, pixels; null squashes to the square."""
    mean: tuple[float, float, float] = _DEFAULTS.mean
    """Channel means that are subtracted, on the scale 0 to 1 (RGB)."""
    std: tuple[
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
    ] = _DEFAULTS.std
    """Channel deviations that divide, on the scale 0 to 1 (RGB)."""

    def sentence(self) -> str:
        """The same for people."""
        side = self.image_size
        if self.resize is None:
            how = f"squashed to {side}x{side}"
        else:
            how = f"short side to {self.resize}, centre {side}x{side} cut out"
        mean, std = (" ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return f"{how} ({INTERPOLATION}); mean {mean}, std {std}"


@dataclass(frozen=True)
class Recorded:
    """What is kept beside weights.

    Attributes:
        preprocessing: of evaluation; None where nothing says.
        class_names: readable names by WordNet id; empty where nothing says.
        provenance: where the weights come from; empty where nothing says.
    """

    preprocessing: Preprocessing | None = None
    class_names: dict[str, str] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def which(self) -> str:
        """Which weights an export holds: ``raw`` or ``ema``."""
        kind = self.provenance.get("weights", "master")
        return "raw" if kind == "master" else str(kind)


def is_ours(path: Path) -> bool:
    """Whether weights are a run, a checkpoint or an export of this program.

    Raises:
        ModelError: there is nothing at ``path``, or nothing that holds weights.
        CheckpointError: it cannot be looked into, or an export's config.json is damaged.
    """
    return source_of(path) in OURS


def read_recorded(path: Path) -> Recorded:
    """Read what an export or a run says about its weights; other layouts are not looked at.

    Raises:
        ModelError: there is nothing at ``path``.
        CheckpointError: the export's config.json is damaged.
        ConfigError: the run's config.yaml is damaged.
    """
    if not is_ours(path):
        return Recorded()
    source = source_of(path)
    if source == "export":
        return _of_export(path if path.is_dir() else path.parent)
    if source == "run":
        run = RunDirectory(path)
        return _of_export(run.export_dir) if is_export(run.export_dir) else _of_run(run)
    return _of_run(RunDirectory(path.absolute().parents[1]))


def _of_export(directory: Path) -> Recorded:
    path = directory / CONFIG_NAME
    config = read_config(path)
    try:
        names = dict(zip(config["classes"], config["class_names"], strict=True))
        given = json.dumps(config["preprocessing"])
        return Recorded(Preprocessing.model_validate_json(given), names, dict(config["provenance"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: damaged or edited ({reason})") from None


def _of_run(run: RunDirectory) -> Recorded:
    if not run.exists:
        return Recorded()
    config = run.read_config()
    preprocessing = Preprocessing(
        image_size=config.model.image_size,
        resize=config.eval.resize,
        mean=config.augment.mean,
        std=config.augment.std,
    )
    return Recorded(preprocessing, {}, {"run": config.name})


def preprocessing_of_recipe(image_size: int) -> Preprocessing:
    """The published recipes' for an image size, for weights that do not say: 224 from 256."""
    squash = image_size >= SQUASHED_FROM
    return Preprocessing(
        image_size=image_size,
        resize=None if squash else int(image_size * SHORT_SIDE_PER_SIZE),
    )


def overridden(preprocessing: Preprocessing, changes: dict[str, Any]) -> Preprocessing:
    """The same with fields given on the command line.

    Raises:
        ConfigError: a value that cannot be meant, or a crop larger than the image it is cut from.
    """
    try:
        changed = Preprocessing.model_validate({**preprocessing.model_dump(), **changes})
    except ValidationError as error:
        detail = error.errors()[0]
        option = str(detail["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {detail['msg']}, got {detail['input']!r}") from None
    if changed.resize is not None and changed.resize < changed.image_size:
        raise ConfigError(
            f"--resize: {changed.resize} is smaller than the image size {changed.image_size} that "
            "is cut out of it; give a larger one, or squash"
        )
    return changed
