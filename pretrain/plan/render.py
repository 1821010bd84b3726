"""The plan as text for a terminal."""

import math
from collections.abc import Mapping, Sequence

from pretrain.config.schema import RunConfig
from pretrain.plan.derive import Plan, times_evaluated
from pretrain.plan.loading import RANK_CORES, Loading, loading_of
from pretrain.plan.results import ResultsPlan
from pretrain.plan.traffic import payloads_of
from pretrain.plan.tuned import typed_as, values_of


def render(config: RunConfig, plan: Plan) -> str:
    """Return the plan as aligned lines, one fact each."""
    rows = [*_data_rows(config, plan), *_step_rows(config, plan), *_size_rows(config, plan)]
    return _aligned(config.name + (f", preset {plan.preset}" if plan.preset else ""), rows)


def render_results(config: RunConfig, plan: ResultsPlan) -> str:
    """Return the plan of a run of results in the same way."""
    images = f"{plan.images:,} images" if plan.images else "not built yet"
    hours = _duration(plan.cost.hours)
    return _aligned(
        config.name,
        [
            ("weights", f"the export of {config.init_from}"),
            ("evaluation", f"{'; '.join(plan.sets)}: {images}"),
            ("layouts", ", ".join(plan.layouts) or "none"),
            ("ranks", f"{plan.ranks_per_node}, {plan.device}"),
            (
                "time",
                f"about {hours} for the images if {plan.cost.assumption}",
            ),
        ],
    )


def _aligned(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in rows)
    return "\n".join([f"plan of {title}", *(f"  {label:<{width}}  {text}" for label, text in rows)])


def _data_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    if plan.edition:
        data = (
            f"{plan.edition}: {plan.num_classes:,} classes, {plan.train_samples:,} training and "
            f"{plan.eval_samples:,} evaluation samples, {plan.shards:,} shards, "
            f"{_size(plan.data_bytes)}"
        )
    else:
        data = (
            f"not built yet in {config.data.path}: planned with {plan.train_samples:,} samples, "
            f"{plan.num_classes:,} classes"
        )
    model, masking = config.model, config.masking
    task = []
    if masking is not None:
        squares = masking.squares_per_side(model.image_size) ** 2
        text = (
            f"restore {masking.hidden_squares(model.image_size)} of {squares} squares of "
            f"{masking.patch_size} pixels, no labels"
        )
        task = [("task", text)]
    return [
        *task,
        ("data", data),
        (
            "model",
            f"{model.variant} at {model.image_size}x{model.image_size}, window "
            f"{model.window_size}: {plan.parameters:,} parameters, "
            f"{plan.forward_macs_per_image / 1e9:.3g} GMAC per image",
        ),
        ("start", f"weights of {config.init_from}" if config.init_from else "from scratch"),
    ]


def _step_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    schedule = config.schedule
    note = f" ({plan.resources_note})" if plan.resources_note else ""
    lr = f"peak {plan.peak_lr:g}"
    if config.optim.lr_reference_batch:
        lr += (
            f" = {config.optim.lr:g} x {plan.global_batch} / {config.optim.lr_reference_batch} "
            "(linear rule)"
        )
    return [
        (
            "ranks",
            f"{plan.world_size} = {plan.nodes} node{'s'[: plan.nodes > 1]} x "
            f"{plan.ranks_per_node}, {plan.device}, ZeRO stage {config.engine.zero_stage}, "
            f"{config.engine.precision}{note}",
        ),
        (
            "global batch",
            f"{plan.global_batch} = {plan.world_size} rank{'s'[: plan.world_size > 1]} x "
            f"{plan.micro_batch} micro-batch x "
            f"{plan.accumulation} accumulation",
        ),
        (
            "steps",
            f"{plan.total_steps:,} = {schedule.epochs} epochs x {plan.steps_per_epoch:,}; "
            f"warm-up {plan.warmup_steps:,}",
        ),
        ("learning rate", f"{lr}; {_course(config, plan)}"),
        ("optimizer", _optimizer(config)),
        *_tuned_rows(config),
        *_evaluation_rows(config, plan),
    ]


def _tuned_rows(config: RunConfig) -> list[tuple[str, str]]:
    """Return the settings that were measured, and how to refuse them."""
    if config.tuned in ("auto", "none"):
        return []
    settings = " ".join(typed_as(values_of(config)))
    return [("tuned", f"{settings}; from {config.tuned} (tuned=none refuses it)")]


def _evaluation_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    """Return what is evaluated, how often, and what of it the time does not count."""
    own, probe = config.data.eval_split, config.eval.probe
    rows = []
    if own is not None:
        when = _when(config, config.eval.every_epochs)
        rows.append(("evaluation", _evaluated(f"split {own}, {when}", plan.eval_samples)))
    if probe is not None:
        when = _when(config, probe.every_epochs)
        what = f"{probe.path}, split {probe.split}, {when}"
        rows.append(("probe", _evaluated(what, plan.probe_samples)))
    return rows or [("evaluation", "none: no held-out split, and no eval.probe")]


def _when(config: RunConfig, every_epochs: int) -> str:
    times = times_evaluated(config, every_epochs)
    period = "every epoch" if every_epochs == 1 else f"every {every_epochs} epochs"
    both = ", with the weights and with their average" if len(config.ema.evaluated) > 1 else ""
    return f"{period}, {times} time{'s'[: times > 1]}{both}"


def _evaluated(what: str, samples: int) -> str:
    return f"{samples:,} images of {what}" if samples else f"{what}; not built, so not in the time"


def _course(config: RunConfig, plan: Plan) -> str:
    """Return how the learning rate moves."""
    schedule = config.schedule
    course = f"from {plan.warmup_lr:g}, " if plan.warmup_steps else ""
    course += schedule.kind
    if schedule.kind == "multistep":
        steps = ", ".join(f"{step:,}" for step in plan.milestone_steps)
        course += f", x{schedule.milestone_factor:g} from step {steps}"
    elif schedule.kind != "constant":
        course += f" to {plan.min_lr:g}"
        course += " counted from step 0, under the warm-up" if schedule.decay_spans_warmup else ""
    return course


def _optimizer(config: RunConfig) -> str:
    """Return what else decides a step."""
    optim, average = config.optim, config.ema
    kind = {"adamw": "AdamW", "lamb": "LAMB"}[optim.kind]
    by = {"torch": "", "apex": " (apex)", "deepspeed_cpu": " (DeepSpeed, CPU)"}
    parts = [f"{kind}{by[optim.implementation]}, weight decay {optim.weight_decay:g}"]
    parts.append(f"clipped at {optim.clip_grad_norm:g}" if optim.clip_grad_norm else "not clipped")
    if optim.layer_decay < 1:
        parts.append(f"{optim.layer_decay:g} of the rate per layer down")
    if average.decay is not None:
        parts.append(f"average of weights {average.decay:g}, {average.result} is the result")
    return ", ".join(parts)


def _size_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    kept = plan.checkpoints_kept + 1
    needed = plan.checkpoint_bytes * kept
    short = "" if needed <= plan.free_disk_bytes else ": NOT ENOUGH"
    cost = plan.cost
    host = [("host memory", f"{_parts(plan.host_memory)} (estimate)")] if plan.host_memory else []
    gpu_hours = f", {_number(cost.gpu_hours)} GPU-hours" if cost.gpu_hours else ""
    return [
        ("memory per rank", f"{_parts(plan.memory)} (estimate)"),
        *host,
        *_traffic_rows(config, plan),
        (
            "checkpoints",
            f"{_size(plan.checkpoint_bytes)} each, every {config.checkpoint.every_steps} steps, "
            f"{plan.checkpoints_kept} kept: {_size(needed)} with the one being written, "
            f"{_size(plan.free_disk_bytes)} free{short}",
        ),
        (
            "time",
            f"about {_duration(cost.hours)}{gpu_hours} ({cost.exaflop:.3g} EFLOP, "
            f"{_number(cost.images_per_second)} images/s) if {cost.assumption}",
        ),
        *_loading_rows(config, plan),
        *_reading_rows(plan),
    ]


def _traffic_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    """Return what ranks send each other; nothing for one rank."""
    if plan.world_size == 1:
        return []
    payloads = payloads_of(config.engine, plan.parameters, plan.accumulation)
    sent = sum(payload.sent_bytes(plan.world_size) for payload in payloads)
    parts = [
        f"{payload.kind.replace('_', '-')} of {payload.what}, {_size(payload.size_bytes)}"
        + (f" x {payload.times}" if payload.times > 1 else "")
        for payload in payloads
    ]
    hidden = "beside" if payloads[0].overlaps else "not beside"
    text = f"{_size(sent)} sent by each rank per step ({'; '.join(parts)}), {hidden} the computing"
    return [("communication", text)]


def _loading_rows(config: RunConfig, plan: Plan) -> list[tuple[str, str]]:
    """Return the cores that loaders need beside GPUs; on CPUs they share those of training."""
    if plan.device == "cpu":
        return []
    rate = plan.cost.images_per_second / plan.world_size
    loading = loading_of(config, rate, plan.ranks_per_node)
    cores = "cores left to Slurm" if loading.cores is None else f"{loading.cores} cores"
    text = (
        f"{loading.cores_needed:.1f} cores per rank for {_number(rate)} images/s, at "
        f"{_number(loading.images_per_second_per_core)} a core ({loading.source}), and "
        f"{RANK_CORES} for the rank; given {cores}, {loading.workers} loader processes"
    )
    return [("loading", text if loading.keeps_up else text + _too_few(loading))]


def _too_few(loading: Loading) -> str:
    workers = math.ceil(loading.cores_needed)
    return (
        f": TOO FEW beside training, they load {_number(loading.images_per_second_max)} images/s; "
        f"give data.workers_per_rank={workers} cluster.cpus_per_rank={workers + RANK_CORES}"
    )


def _reading_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return what the shards' file system must give for that time; nothing before they exist."""
    rate = plan.cost.images_per_second * plan.bytes_per_train_image
    if not rate:
        return []
    each = f", {_size(rate / plan.nodes)}/s per node" if plan.nodes > 1 else ""
    return [("reading", f"{_size(rate)}/s of shards{each}, for that rate")]


def total_cost(plans: Sequence[Plan | ResultsPlan]) -> str:
    """Return one line with the cost of several runs together, each after the other."""
    hours = sum(plan.cost.hours for plan in plans)
    gpu_hours = sum(plan.cost.gpu_hours for plan in plans)
    said = f", {_number(gpu_hours)} GPU-hours" if gpu_hours else ""
    return f"all {len(plans)} runs: about {_duration(hours)} one after the other{said}"


def _parts(sizes: Mapping[str, int]) -> str:
    """Return a sum of bytes, and what it is the sum of."""
    parts = ", ".join(f"{part} {_size(size)}" for part, size in sizes.items())
    return f"{_size(sum(sizes.values()))}: {parts}"


def _size(size_bytes: float) -> str:
    """Return a size in the unit that leaves it readable."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{_number(hours)} hours" if hours >= 100 else f"{hours:.1f} hours"
    minutes = max(1, round(hours * 60))
    return f"{minutes} minute{'s'[: minutes > 1]}"
