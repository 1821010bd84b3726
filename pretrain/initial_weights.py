"""The weights that a run starts from: read from any layout, fitted to its model and its classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import dist
from pretrain.config.schema import ModelConfig, RunConfig
from pretrain.convert.read import Loaded, load
from pretrain.errors import ModelError, PretrainError
from pretrain.job import Job
from pretrain.metrics.recorder import Recorder
from pretrain.models.swin import Swin
from pretrain.models.transfer import FAMILIES, transfer
from pretrain.models.variants import shape_of
from pretrain.preflight import initial_weights_path

_OPTIONS = {
    "--window TOKENS": "init_window_size=TOKENS",
    "--image-size PIXELS": "init_image_size=PIXELS",
    "--image-size": "init_image_size",
    "--weights": "init_weights",
    "--classes": "init_classes",
}
"""How the config says what the options of conversion say, which messages and notes name."""


def load_initial_weights(job: Job, model: Swin, recorder: Recorder) -> None:
    """Fill the model on rank zero from ``init_from``, if the config has it. **Every rank**.

    Position bias tables are resized to the model's windows, head rows picked by WordNet id. One
    event says what was done. The other ranks get the weights when the engine takes the model.

    Raises:
        ModelError: on every rank alike, if the weights cannot be read or do not fit.
    """
    path = initial_weights_path(job.config)
    if path is None:
        return
    said: dict[str, Any] = {"refusal": "", "done": {}}
    if job.world.rank == 0:
        try:
            said["done"] = start_from(path, job.config, model, job.manifest.classes)
        except PretrainError as error:
            said["refusal"] = _in_fields(str(error))
    said = json.loads(dist.broadcast_text(json.dumps(said)))
    if said["refusal"]:
        raise ModelError(f"init_from: {said['refusal']}")
    recorder.event("initial_weights", **said["done"])


def start_from(
    path: Path, config: RunConfig, model: Swin, classes: Sequence[str]
) -> dict[str, str]:
    """Fill a model from weights of any layout. Any rank, alone.

    Args:
        path: of the weights.
        config: what it says about them (``init_…``), and about the model.
        model: the model to fill.
        classes: class ids in the order of the model's head.

    Returns:
        What was read and what became of it, for people.

    Raises:
        ModelError: they are no weights of a Swin, or of another one.
        CheckpointError: they cannot be read, or are damaged.
        DataError: ``init_classes`` cannot be read.
    """
    loaded = load(
        path,
        choice=config.init_weights,
        image_size=config.init_image_size,
        window_size=config.init_window_size,
        classes=None if config.init_classes is None else Path(config.init_classes),
    )
    _check_network(loaded, config.model, path)
    try:
        report = transfer(loaded.tensors, loaded.labels.ids, model, classes, loaded.model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    of = loaded.model
    return {
        "source": str(path),
        "layout": loaded.layout,
        "model": f"{of.variant}, {of.image_size} pixels, window {of.window_size}",
        "head": report.head,
        "changes": _in_fields("; ".join([*loaded.notes, *report.lines()])),
    }


def _check_network(loaded: Loaded, model: ModelConfig, path: Path) -> None:
    """Refuse another network in one line; `transfer` would list every parameter."""
    got, expected = (_network(one) for one in (loaded.model, model))
    if got != expected:
        raise ModelError(
            f"{path}: weights of {got}; expected {expected}, as the model is; give the "
            "model.variant, or shape, of the weights, or other weights"
        )


def _network(model: ModelConfig) -> str:
    shape = shape_of(model)
    depths, heads = (" ".join(map(str, numbers)) for numbers in (shape.depths, shape.heads))
    name = FAMILIES[shape.family][0]
    return f"a {name} of {shape.embed_dim} channels, depths {depths}, heads {heads}"


def _in_fields(text: str) -> str:
    for option, field in _OPTIONS.items():
        text = text.replace(option, field)
    return text
