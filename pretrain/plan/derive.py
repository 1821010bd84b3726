"""The plan: a config, a manifest and the resources in; every derived number out."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.augment.policy import parse_policy
from pretrain.config.schema import RunConfig
from pretrain.data.manifest import Manifest, Split
from pretrain.errors import ConfigError
from pretrain.models.cost import count_forward_macs, count_parameters
from pretrain.models.variants import (
    Shape,
    check_image_size,
    check_masking,
    masked_shape,
    shape_of,
)
from pretrain.plan.cost import Cost, estimate_cost
from pretrain.plan.measured import MeasuredRate
from pretrain.plan.memory import memory_bytes_per_rank
from pretrain.plan.resources import Resources
from pretrain.plan.tuned import TunedRate

BYTES_PER_PARAMETER_SAVED = 12
"""A checkpoint holds the fp32 master weight and AdamW's two moments of every parameter."""
BYTES_PER_AVERAGE_SAVED = 4
"""And its fp32 average, where the run keeps one."""


@dataclass(frozen=True)
class Plan:
    """Every number that follows; sizes in bytes, counts bare, fractions from 0 to 1.

    Attributes:
        preset: which of the config's presets was taken, if any.
        edition: data edition, or nothing while the shards are not built.
        num_classes: length of the class list and of the head.
        train_samples: images of an epoch.
        eval_samples: images of an evaluation; 0 without one.
        probe_samples: images of an evaluation of the probe; 0 without one, or while its shards are
            not built.
        shards: shard files of both splits; 0 while they are not built.
        data_bytes: size of those files.
        bytes_per_train_image: what the shards hold for each training image, on average; 0 while
            they are not built.
        device: ``cuda`` or ``cpu``.
        nodes: machines.
        ranks_per_node: processes of each.
        resources_note: what was changed from the config to fit the machines.
        global_batch: images of one optimizer step.
        micro_batch: images of one forward pass of one rank.
        accumulation: forward passes of one rank per step.
        steps_per_epoch: whole global batches in an epoch.
        total_steps: optimizer steps of the run.
        warmup_steps: steps of linear warm-up, part of the total.
        milestone_steps: steps from which on the learning rate is lower; of ``multistep`` only.
        eval_every_steps: steps between evaluations.
        lr_scale: factor of the linear scaling rule; 1 without one.
        peak_lr: learning rate applied after the warm-up.
        warmup_lr: learning rate of step 0.
        min_lr: learning rate of the end.
        parameters: trainable parameters of the model.
        forward_macs_per_image: multiply-accumulates of one forward pass.
        memory: bytes per rank by part, on its device.
        host_memory: bytes per rank by part, in the host's memory for what is offloaded.
        checkpoint_bytes: size of one checkpoint.
        checkpoints_kept: how many are kept.
        free_disk_bytes: free space where the run directory lies.
        cost: hours, with what they assume.
    """

    preset: str | None
    edition: str
    num_classes: int
    train_samples: int
    eval_samples: int
    probe_samples: int
    shards: int
    data_bytes: int
    bytes_per_train_image: float
    device: str
    nodes: int
    ranks_per_node: int
    resources_note: str
    global_batch: int
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    milestone_steps: tuple[int, ...]
    eval_every_steps: int
    lr_scale: float
    peak_lr: float
    warmup_lr: float
    min_lr: float
    parameters: int
    forward_macs_per_image: int
    memory: dict[str, int]
    host_memory: dict[str, int]
    checkpoint_bytes: int
    checkpoints_kept: int
    free_disk_bytes: int
    cost: Cost

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node

    def to_json(self) -> str:
        """Return the plan as indented JSON, as kept in the run directory."""
        return json.dumps(asdict(self), indent=2) + "\n"


def make_plan(
    config: RunConfig,
    manifest: Manifest | None,
    resources: Resources,
    *,
    free_disk_bytes: int,
    probe: Split | None = None,
    measured: MeasuredRate | TunedRate | None = None,
) -> Plan:
    """Derive the plan.

    Args:
        config: the run.
        manifest: of ``config.data.path``; None plans with ``data.expected_train_samples``.
        resources: the machines.
        free_disk_bytes: free space where the run directory lies.
        probe: the split of ``eval.probe``; None without one, or while it is not built.
        measured: the rate of an earlier run of the same work, or of its tuning.

    Raises:
        ConfigError: config, data and machines do not suit each other; the message says what would.
    """
    shape = _checked_shape(config, resources.device)
    train_samples, eval_samples = _samples(config, manifest)
    micro_batch, accumulation = split_batch(config, resources.world_size)
    steps_per_epoch, total_steps = _steps(config, train_samples, resources.world_size)
    parameters, macs = count_parameters(shape), count_forward_macs(shape)
    trained, lr_scale = total_steps * config.batch.global_size, _lr_scale(config)
    evaluated = _evaluated_images(config, eval_samples, probe)
    return Plan(
        preset=config.preset,
        num_classes=config.model.num_classes,
        train_samples=train_samples,
        eval_samples=eval_samples,
        probe_samples=0 if probe is None else probe.samples,
        **_shards(config, manifest),
        device=resources.device,
        nodes=resources.nodes,
        ranks_per_node=resources.ranks_per_node,
        resources_note=resources.note,
        global_batch=config.batch.global_size,
        micro_batch=micro_batch,
        accumulation=accumulation,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
        milestone_steps=tuple(e * steps_per_epoch for e in config.schedule.milestone_epochs),
        eval_every_steps=config.eval.every_epochs * steps_per_epoch,
        lr_scale=lr_scale,
        peak_lr=config.optim.lr * lr_scale,
        warmup_lr=config.schedule.warmup_lr * lr_scale,
        min_lr=_end_lr(config) * lr_scale,
        parameters=parameters,
        forward_macs_per_image=macs,
        **memory_bytes_per_rank(shape, config, micro_batch, resources.world_size),
        checkpoint_bytes=_bytes_per_parameter_saved(config) * parameters,
        checkpoints_kept=_checkpoints_kept(config, total_steps),
        free_disk_bytes=free_disk_bytes,
        cost=estimate_cost(trained, evaluated, macs, resources, measured),
    )


def split_batch(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Return (micro-batch, accumulation): the largest micro-batch allowed that divides.

    A micro-batch holds whole mixing groups, so that mixing is the same at any world size.

    Raises:
        ConfigError: no micro-batch fits; the message names the nearest global batches that do.
    """
    group = config.augment.mix_group if config.augment.mixes else 1
    global_size, largest = config.batch.global_size, config.batch.micro_size_max
    if largest < group:
        raise ConfigError(
            f"batch.micro_size_max: {largest} is less than augment.mix_group {group}, and a "
            f"micro-batch holds whole groups; give augment.mix_group={_power_of_two(largest)}"
        )
    unit = world_size * group
    if global_size % unit:
        below = global_size // unit * unit
        near = " or ".join(str(size) for size in (below, below + unit) if size)
        raise ConfigError(
            f"batch.global_size: {global_size} does not divide into {world_size} ranks x mixing "
            f"groups of {group}; nearest that do: {near} (or another augment.mix_group)"
        )
    micro_batch = max(size for size in micro_batch_sizes(config, world_size) if size <= largest)
    return micro_batch, global_size // world_size // micro_batch


def micro_batch_sizes(config: RunConfig, world_size: int) -> list[int]:
    """Return every micro-batch of whole mixing groups that the global batch divides into, sorted.

    None where the global batch does not divide into the ranks' mixing groups at all.
    """
    group = config.augment.mix_group if config.augment.mixes else 1
    groups_per_rank, rest = divmod(config.batch.global_size, world_size * group)
    if rest:
        return []
    return [group * n for n in range(1, groups_per_rank + 1) if groups_per_rank % n == 0]


def _check_device(config: RunConfig, device: str) -> None:
    """Refuse what the device cannot do, or only so slowly that nobody means it."""
    if device == "cuda":
        return
    if config.engine.precision == "fp16":
        raise ConfigError(
            "engine.precision: fp16 is for GPUs, and this run has none; give engine.precision=bf16"
        )
    for field, value in (
        ("optim.implementation", config.optim.implementation),
        ("engine.layer_norm", config.engine.layer_norm),
    ):
        if value == "apex":
            raise ConfigError(
                f"{field}: NVIDIA apex is for GPUs, and this run has none; give {field}=torch"
            )


def _check_profile(config: RunConfig, total_steps: int, world_size: int) -> None:
    """Refuse to profile steps and ranks that there are none of."""
    profile = config.profile
    if profile.steps and profile.first_step + profile.steps > total_steps:
        raise ConfigError(
            f"profile.steps: {profile.steps} after {profile.first_step} are more than the "
            f"{total_steps} steps of the run"
        )
    missing = [rank for rank in profile.ranks if rank >= world_size]
    if profile.steps and missing:
        raise ConfigError(
            f"profile.ranks: there is no rank {missing[0]} among {world_size}, which count from 0"
        )


def _end_lr(config: RunConfig) -> float:
    schedule = config.schedule
    if schedule.kind == "multistep":
        return config.optim.lr * schedule.milestone_factor ** len(schedule.milestone_epochs)
    return schedule.min_lr


def _checked_shape(config: RunConfig, device: str) -> Shape:
    """Return the shape of what is trained after checks that need no data."""
    _check_device(config, device)
    shape = shape_of(config.model)
    check_image_size(shape)
    if config.masking is not None:
        check_masking(shape, config.masking)
        shape = masked_shape(shape)
    if config.augment.randaugment is not None:
        parse_policy(config.augment.randaugment)
    return shape


def _bytes_per_parameter_saved(config: RunConfig) -> int:
    average = 0 if config.ema.decay is None else BYTES_PER_AVERAGE_SAVED
    return BYTES_PER_PARAMETER_SAVED + average


def _lr_scale(config: RunConfig) -> float:
    return config.batch.global_size / (config.optim.lr_reference_batch or config.batch.global_size)


def _steps(config: RunConfig, train_samples: int, world_size: int) -> tuple[int, int]:
    """Return the steps of an epoch and of the run."""
    steps = train_samples // config.batch.global_size
    if steps == 0:
        raise ConfigError(
            f"batch.global_size: {config.batch.global_size} is more than the {train_samples} "
            f"samples of split '{config.data.train_split}'; "
            f"give batch.global_size={_power_of_two(train_samples)} or more data"
        )
    _check_profile(config, steps * config.schedule.epochs, world_size)
    return steps, steps * config.schedule.epochs


def _checkpoints_kept(config: RunConfig, total_steps: int) -> int:
    """Return how many there are at the end, at most."""
    keep = config.checkpoint
    periodic = total_steps // keep.keep_every_steps if keep.keep_every_steps else 0
    return keep.keep_last + keep.keep_best + periodic


def _samples(config: RunConfig, manifest: Manifest | None) -> tuple[int, int]:
    data = config.data
    if manifest is None:
        if data.expected_train_samples is None:
            raise ConfigError(
                f"data.path: no shards in {data.path} and no data.expected_train_samples to plan "
                "with; build the shards first"
            )
        return data.expected_train_samples, 0
    listed = len(manifest.classes)
    if listed != config.model.num_classes:
        relation = "longer" if listed > config.model.num_classes else "shorter"
        raise ConfigError(
            f"model.num_classes: the class list of {manifest.location} is {relation} than the "
            f"head: {listed} classes, head of {config.model.num_classes}; "
            f"give model.num_classes={listed} or the right data.path"
        )
    train = manifest.split(data.train_split).samples
    return train, 0 if data.eval_split is None else manifest.split(data.eval_split).samples


def _shards(config: RunConfig, manifest: Manifest | None) -> dict[str, Any]:
    """Return what the plan says of the files: nothing while they are not built."""
    if manifest is None:
        return {"edition": "", "shards": 0, "data_bytes": 0, "bytes_per_train_image": 0.0}
    train = manifest.split(config.data.train_split)
    splits = [manifest.split(name) for name in _split_names(config)]
    return {
        "edition": manifest.edition,
        "shards": sum(len(split.shards) for split in splits),
        "data_bytes": sum(split.bytes for split in splits),
        "bytes_per_train_image": train.bytes / train.samples,
    }


def times_evaluated(config: RunConfig, every_epochs: int) -> int:
    """How often a split is evaluated that is every so many epochs, and at the end."""
    return math.ceil(config.schedule.epochs / every_epochs)


def _evaluated_images(config: RunConfig, eval_samples: int, probe: Split | None) -> int:
    """Images of all evaluations, counted once for each of the weights that are measured on them."""
    images = eval_samples * times_evaluated(config, config.eval.every_epochs)
    if probe is not None and config.eval.probe is not None:
        images += probe.samples * times_evaluated(config, config.eval.probe.every_epochs)
    return images * len(config.ema.evaluated)


def _split_names(config: RunConfig) -> list[str]:
    names = [config.data.train_split, config.data.eval_split]
    return [name for name in dict.fromkeys(names) if name is not None]


def _power_of_two(limit: int) -> int:
    return 2 ** int(math.log2(limit))
