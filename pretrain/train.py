"""The one composition root: builds the parts of a run, connects them, and runs the loop.

Read `run_steps` first; everything above it is preparation and everything below it is one verb of
the loop. Every function here is called by every rank.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from pretrain import dist
from pretrain.accuracy import evaluated, images_due, is_due, keep_by_class, measure
from pretrain.checkpoint.resume import CheckpointReader
from pretrain.checkpoint.store import CheckpointStore
from pretrain.data.batch import BadSample, Batch
from pretrain.engine.engine import Engine
from pretrain.engine.step_result import StepResult
from pretrain.fast_paths import take_fast_paths
from pretrain.finished import export
from pretrain.guard import Fault, Guard
from pretrain.health import check_health
from pretrain.initial_weights import load_initial_weights
from pretrain.job import Job
from pretrain.metrics.activations import Activations
from pretrain.metrics.clock import Clock, Phase
from pretrain.metrics.forecast import Forecast
from pretrain.metrics.meter import Meter, peak_memory_gib
from pretrain.metrics.recorder import Recorder
from pretrain.objective import Objective, engine_of, objective_of
from pretrain.plan.devices import images_per_second_at_peak
from pretrain.plan.memory import compare_with_peak
from pretrain.plan.resources import cpu_name
from pretrain.plan.take_up import tuned_on
from pretrain.profile.profiler import Profiler
from pretrain.recovery import compare_ranks, find_checkpoint, go_back
from pretrain.saving import Saver, open_store
from pretrain.step_inputs import StepInputs, rate, training_batches
from pretrain.stop import StopRequest
from pretrain.watchdog import Watchdog
from pretrain.world import node_name


@dataclass
class Parts:
    """The parts of a run, connected; only this file holds them together."""

    job: Job
    device: torch.device
    objective: Objective
    engine: Engine
    recorder: Recorder
    clock: Clock
    meter: Meter
    activations: Activations
    guard: Guard
    saver: Saver
    watchdog: Watchdog
    stop: StopRequest
    profiler: Profiler
    steps_done: int
    bad_samples: list[BadSample] = field(default_factory=list)
    """Of this rank, not reported yet."""


def train(job: Job) -> str:
    """Train from the newest checkpoint, or the start, to the end. Every rank.

    After `pretrain.dist.initialize`. Rank zero leaves the outcome in the attempt's directory.

    Returns:
        ``done``, or where everything is saved ``stopped``, because a signal asked for it, or
        ``profiled``, because the config did.

    Raises:
        PretrainError: something a person must mend; every other error is a defect.
    """
    stop = StopRequest()
    device = torch.device(job.device)
    torch.set_num_threads(job.threads)
    with closing(watch(job)) as watchdog:
        health = check_health(job, device)
        store = open_store(job)
        reader, refusals = find_checkpoint(job)
        first_step = 0 if reader is None else reader.step
        with Recorder(
            job.run,
            job.config,
            rank=job.world.rank,
            attempt=job.attempt,
            resume_step=first_step,
            total_steps=job.plan.total_steps,
            steps_per_epoch=job.plan.steps_per_epoch,
            facts=job.facts(),
        ) as recorder:
            for refusal in refusals:
                recorder.event("checkpoint_refused", reason=refusal)
            recorder.event("started", step=first_step, ranks=job.world.size, device=str(device))
            if health is not None:
                recorder.event("health", **health)
            report_device(job, device, recorder)
            parts = connect(job, device, store, recorder, watchdog, stop, first_step)
            if reader is not None:
                restore(parts, reader)
            while isinstance(outcome := run_steps(parts), Fault):
                rewind(parts, outcome)
            watchdog.enter("save")
            if outcome == "done":
                finish(parts)
            recorder.event("done" if outcome == "done" else "stopped")
            leave_outcome(parts, outcome)
            # Not after an error: NCCL's groups close together, and peers wait in a collective then.
            parts.engine.close()
    return outcome


def report_device(job: Job, device: torch.device, recorder: Recorder) -> None:
    """Write an event where the settings of the run were measured on another device than this."""
    measured_on = tuned_on(job.config)
    here = name_of(device)
    if measured_on is not None and measured_on != here:
        recorder.event("tuned_elsewhere", measured_on=measured_on, here=here)


def name_of(device: torch.device) -> str:
    """What a device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def watch(job: Job) -> Watchdog:
    """Watch this rank, from its start on; the first of each node shows that the node lives."""
    stacks = job.run.stacks_path(job.attempt, job.world.rank)
    heartbeat = job.run.heartbeat_path(job.attempt, node_name())
    first = job.world.local_rank == 0
    return Watchdog(stacks, job.config.watchdog, "start", heartbeat if first else None)


def connect(
    job: Job,
    device: torch.device,
    store: CheckpointStore,
    recorder: Recorder,
    watchdog: Watchdog,
    stop: StopRequest,
    first_step: int,
) -> Parts:
    """Build every part; at the first step weights come from ``init_from``, if the config has it."""
    config, plan = job.config, job.plan
    torch.manual_seed(config.seed)
    objective = objective_of(config)
    if first_step == 0:
        load_initial_weights(job, objective.encoder, recorder)
    objective, paths = take_fast_paths(objective, config, device)
    for remark in paths.remarks:
        recorder.event("fell_back", reason=remark)
    profiler = Profiler(job, objective.model, recorder.event)
    engine = engine_of(
        objective,
        config,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        device=device,
        world=job.world,
        around=profiler.range,
    )
    meter = Meter()
    clock = clock_of(job, device, watchdog, profiler)
    recorder.eta_seconds = clock.eta_seconds
    guard = Guard(config.guard)
    return Parts(
        job=job,
        device=device,
        objective=objective,
        engine=engine,
        recorder=recorder,
        clock=clock,
        meter=meter,
        activations=Activations(objective.encoder.layers),
        guard=guard,
        saver=Saver(job, store, engine, recorder, clock, meter, guard),
        watchdog=watchdog,
        stop=stop,
        profiler=profiler,
        steps_done=first_step,
    )


def clock_of(job: Job, device: torch.device, watchdog: Watchdog, profiler: Profiler) -> Clock:
    """Build what times this rank's phases."""
    plan, config = job.plan, job.config
    return Clock(
        global_batch=plan.global_batch,
        forecast=Forecast(
            total_steps=plan.total_steps,
            global_batch=plan.global_batch,
            evaluated=evaluated(job),
            save_every_steps=config.checkpoint.every_steps,
            saves_evaluated=config.checkpoint.keep_best > 0,
            saves_waited_for=not config.checkpoint.background,
            save_bytes=plan.checkpoint_bytes,
        ),
        ranks=job.world.size,
        images_per_second_at_peak=images_per_second_at_peak(
            name_of(device),
            config.engine.precision,
            plan.forward_macs_per_image,
        ),
        on_phase=lambda phase: enter(watchdog, profiler, phase),
    )


def enter(watchdog: Watchdog, profiler: Profiler, phase: Phase | None) -> None:
    """Tell who follows the clock's phases of the one that begins."""
    watchdog.enter(phase or "step")
    profiler.enter(phase)


def restore(parts: Parts, reader: CheckpointReader) -> None:
    """Take up the state of a checkpoint."""
    state = reader.state
    parts.engine.load_fragments(reader.read, saved_shapes=reader.shapes, **state["engine"])
    reader.close()
    parts.clock.forecast.load_state(state.get("forecast", {}))  # older ones lack it
    parts.meter.load_state(state["meter"], parts.job.world.rank)
    parts.guard.load_state(state["guard"])
    parts.steps_done = reader.step
    parts.recorder.event("resumed", checkpoint=reader.directory.name)


def rewind(parts: Parts, fault: Fault) -> None:
    """Go back to a checkpoint from before the fault and leave out the batches around it."""
    parts.saver.settle(parts.steps_done)
    reader, what = go_back(parts.job, parts.saver.store, fault)
    parts.recorder.rewind(reader.step)
    parts.recorder.event("rewound", **what)
    restore(parts, reader)


def run_steps(parts: Parts) -> str | Fault:
    """Train from the steps already done to the end, to a request to stop, or to a fault."""
    job, config, plan = parts.job, parts.job.config, parts.job.plan
    with training_batches(job, parts.steps_done) as batches, parts.profiler as profiler:
        inputs = inputs_of(parts, parts.clock.waiting(batches))
        for step in range(parts.steps_done, plan.total_steps):
            bad_before = len(parts.bad_samples)
            done = step + 1
            last = done == plan.total_steps
            recorded = last or done % config.log.every_steps == 0
            with parts.clock.phase("step"), parts.activations.watched(recorded):
                lr = rate(job, step)
                made = inputs.of_step(step)
                result = parts.engine.train_step(
                    made, lr, sampled=recorded, meanwhile=inputs.prepare
                )
            parts.meter.add(result, len(parts.bad_samples) - bad_before)
            parts.steps_done = done
            parts.saver.report(done)
            if recorded:
                fault = record(parts, done, lr, result)
                if fault is not None:
                    return fault
            if is_due(job, done):
                measure_accuracy(parts, done)
            profiled = profiler.step_done(done)
            reason = None if last else parts.stop.agreed() or profiled
            if done % config.guard.compare_every_steps == 0:
                compare_ranks(job, parts.engine.weights_digest(), done)
            if parts.saver.is_due(done) or last or reason:
                save(parts, done, must=last or reason is not None)
            if reason:
                parts.recorder.event("stop_requested", signal=reason, step=done)
                parts.recorder.progress(done, "stopped")
                return "profiled" if reason == profiled else "stopped"
            parts.recorder.progress(done, "training")
    return "done"


def inputs_of(parts: Parts, stream: Iterator[Batch]) -> StepInputs:
    """Make what the steps still to come are given, of the loader's batches."""
    return StepInputs(
        parts.job,
        parts.objective.augment,
        stream,
        parts.device,
        parts.steps_done,
        parts.bad_samples,
        parts.recorder,
        parts.profiler.range,
    )


def record(parts: Parts, done: int, lr: float, result: StepResult) -> Fault | None:
    """Write the numbers of the interval that ends after ``done`` steps; say what is wrong there.

    Its last step was sampled; ``lr`` is that one's rate and ``result`` what it did.
    """
    plan = parts.job.plan
    with dist.refusing_together():
        if parts.job.world.rank == 0:
            parts.saver.store.check_owner()
    interval = parts.meter.read(parts.activations.taken())
    waited = None if result.sample is None else result.sample.communication_seconds
    values = interval.values | parts.clock.read(None if waited is None else waited())
    values["train/learning_rate"] = lr
    values["train/weight_decay"] = parts.job.config.optim.weight_decay
    if result.loss_scale is not None:
        values["train/loss_scale"] = result.loss_scale
    values["run/attempt"] = parts.job.attempt
    values["train/epoch"] = done / plan.steps_per_epoch
    values["data/samples_consumed"] = done * plan.global_batch
    values["memory/peak_gib"] = peak_memory_gib(parts.device)
    parts.recorder.write(done, values)
    if values["data/bad_samples"]:
        report_bad_samples(parts, done)
    return parts.guard.watch(done, interval.losses)


def report_bad_samples(parts: Parts, done: int) -> None:
    """Write an event for each sample that some rank could not use since the last report."""
    for of_rank in dist.gather_objects([asdict(bad) for bad in parts.bad_samples]):
        for bad in of_rank:
            parts.recorder.event("bad_sample", step=done, **bad)
    parts.bad_samples.clear()


def measure_accuracy(parts: Parts, done: int) -> None:
    """Evaluate what is due after ``done`` steps and write the result."""
    job = parts.job
    parts.recorder.progress(done, "evaluating")
    images = images_due(job, done)
    with parts.clock.phase("evaluation", images=images):
        logits_of = parts.watchdog.alive_at(showing_progress(parts, done, images))
        measured = measure(job, done, logits_of, parts.engine.computing_with, parts.device)
        fault = keep_by_class(job, measured)
    parts.recorder.write(done, measured.values)
    if fault is not None:
        parts.recorder.event("by_class_failed", step=done, reason=fault)
    parts.saver.note_accuracy(done, measured.values)
    parts.bad_samples += measured.bad
    if dist.max_across_ranks(len(measured.bad)):
        report_bad_samples(parts, done)


def showing_progress(parts: Parts, done: int, images: int) -> Callable[[Tensor], Tensor]:
    """Return the engine's logits, which say how many of so many images all ranks have seen."""
    seen = 0

    def logits_of(batch: Tensor) -> Tensor:
        nonlocal seen
        fraction = min(1.0, seen * parts.job.world.size / images)
        parts.recorder.progress(done, "evaluating", evaluated_fraction=fraction)
        seen += len(batch)
        return parts.engine.logits(batch)

    return logits_of


def save(parts: Parts, done: int, *, must: bool) -> None:
    """Save the state after ``done`` steps; one that ``must`` be saved is waited for."""
    parts.recorder.progress(done, "saving")
    if dist.max_across_ranks(len(parts.bad_samples)):
        report_bad_samples(parts, done)
    parts.saver.save(done, must=must)


def finish(parts: Parts) -> None:
    """Export the weights."""
    job = parts.job
    weights = parts.engine.full_weights(job.config.ema.given)
    if job.world.rank == 0:
        export(job, weights)
        parts.recorder.event("exported", directory=str(job.run.export_dir))
    if parts.device.type == "cuda":
        peak_gib = peak_memory_gib(parts.device)
        parts.recorder.event("memory", **compare_with_peak(job.plan.memory, peak_gib))
    parts.recorder.progress(job.plan.total_steps, "done")


def leave_outcome(parts: Parts, outcome: str) -> None:
    """Tell the supervisor how this attempt ended, once everything that counts is on the disk."""
    job = parts.job
    if job.world.rank == 0:
        job.run.leave_outcome(job.attempt, outcome, parts.steps_done)
    dist.barrier()
