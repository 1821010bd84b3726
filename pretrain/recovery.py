"""Which checkpoint a run goes on from: the newest after a restart, an older one after a fault.

After a fault the batches around it are left out from then on. ``rewinds.json`` of the run lists
every rewind; what is left out follows from it alone, so that an attempt that starts anew, from
whatever checkpoint, reads the same stream.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import dist
from pretrain.checkpoint.resume import CheckpointReader, newest_valid_for_all
from pretrain.checkpoint.store import CheckpointStore
from pretrain.data.loader import train_order
from pretrain.data.skips import Skip, batch_of_step, with_skip
from pretrain.errors import CheckpointError, EngineError, RanksDivergedError
from pretrain.files import replace_text, sync
from pretrain.guard import Fault, odd_ranks
from pretrain.health import name_bad_ranks
from pretrain.job import Job
from pretrain.run_directory import RunDirectory
from pretrain.world import node_name

_ADVICE = "lower optim.lr or clip (optim.clip_grad_norm)"


def find_checkpoint(job: Job) -> tuple[CheckpointReader | None, list[str]]:
    """Return the newest sound checkpoint of the run, None before the first, and why not others.

    Raises:
        CheckpointError: there are checkpoints but none is sound, or the data has changed, or an
            older version saved it.
    """
    directory = job.run.checkpoints_dir
    reader, refusals = newest_valid_for_all(directory, rank=job.world.rank)
    if reader is None and refusals:
        lines = [f"{directory}: no checkpoint is sound; move them away to start over", *refusals]
        raise CheckpointError("\n".join(lines))
    if reader is not None and "guard" not in reader.state:
        raise CheckpointError(
            f"{reader.directory}: was saved by an older version, whose runs this one does not "
            f"take up; start another from its weights (init_from={reader.directory})"
        )
    if reader is not None and reader.state["data"] != job.data_fingerprint:
        raise CheckpointError(
            f"{reader.directory}: was trained on other shards than {job.manifest.location} "
            "holds now; restore them, or start another run (--name)"
        )
    return reader, refusals


def read_skips(run: RunDirectory) -> list[Skip]:
    """The batches that a run leaves out, in the order of the stream. Any rank.

    Raises:
        EngineError: the list is damaged.
    """
    return _skips(run, _read(run))


def _read(run: RunDirectory) -> list[dict[str, Any]]:
    try:
        return json.loads(run.rewinds_path.read_text(encoding="utf-8"))["rewinds"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{run.rewinds_path}: cannot be read ({error!r}); without it training would see the "
            "batches again that it went back for; restore it, or delete it to see them"
        ) from None


def _skips(run: RunDirectory, rewinds: list[dict[str, Any]]) -> list[Skip]:
    if not rewinds:
        return []
    try:
        return [Skip(int(first), int(count)) for first, count in rewinds[-1]["left_out_batches"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{run.rewinds_path}: damaged ({error!r})") from None


def go_back(
    job: Job, store: CheckpointStore, fault: Fault
) -> tuple[CheckpointReader, dict[str, Any]]:
    """Choose the checkpoint, write down what is left out, delete what came later. Every rank.

    Returns:
        The checkpoint to restore, and what is to be said about it.

    Raises:
        EngineError: there is nothing to go back to, or it was tried often enough.
    """
    rewinds = _read(job.run)
    vain = _in_vain(rewinds, fault, job.config.guard.memory_steps)
    if len(vain) >= job.config.guard.max_rewinds:
        raise EngineError(
            f"training: {fault.reason}; it went back {len(vain)} times for this already "
            f"(guard.max_rewinds); {_ADVICE}"
        )
    reader = _checkpoint_before(job, fault, vain)
    skips = _skips(job.run, rewinds)
    first_step = max(reader.step, fault.first_step - job.config.guard.margin_steps)
    rewind = {
        "reason": fault.reason,
        "fault_step": fault.first_step,
        "steps_done": fault.steps_done,
        "checkpoint_step": reader.step,
        "left_out_steps": [first_step, fault.steps_done],
        "samples": f"{job.run.rewinds_path.stem}_{len(rewinds) + 1:03d}_samples.txt",
    }
    if job.world.rank == 0:
        batches = [batch_of_step(step, skips) for step in range(first_step, fault.steps_done)]
        _write_samples(job, job.run.path / rewind["samples"], batches)
        longer = with_skip(skips, first_step, fault.steps_done)
        left_out = [[skip.first_batch, skip.batches] for skip in longer]
        entry = {**rewind, "attempt": job.attempt, "left_out_batches": left_out}
        content = json.dumps({"rewinds": [*rewinds, entry]}, indent=1)
        replace_text(job.run.rewinds_path, content + "\n")
        sync(job.run.path)
    store.delete_after(reader.step)
    return reader, rewind


def compare_ranks(job: Job, digest: int, steps_done: int) -> None:
    """Make sure that every rank computes with the same weights. Every rank.

    Args:
        job: whose ranks.
        digest: of this rank's weights.
        steps_done: steps they were trained for.

    Raises:
        RanksDivergedError: on every rank, with the ranks and hosts that are not like most.
    """
    found = dist.gather_objects({"digest": digest, "host": node_name()})
    odd = odd_ranks([each["digest"] for each in found])
    if odd:
        if job.world.rank == 0:
            why = f"computes with other weights than most ranks after step {steps_done}"
            name_bad_ranks(job, [(rank, found[rank]["host"], why) for rank in odd])
        named = ", ".join(f"rank {rank} on {found[rank]['host']}" for rank in odd)
        raise RanksDivergedError(
            f"{job.config.name}: the weights of {named} are not those of most ranks after step "
            f"{steps_done}; memory, a device or a link is broken"
        )


def _in_vain(rewinds: list[dict[str, Any]], fault: Fault, soon_steps: int) -> list[int]:
    """Checkpoints that training went back to last, each of which led to a fault again soon."""
    steps: list[int] = []
    first_step = fault.first_step
    for rewind in reversed(rewinds):
        if first_step > rewind["steps_done"] + soon_steps:
            break
        steps.append(rewind["checkpoint_step"])
        first_step = rewind["fault_step"]
    return steps


def _checkpoint_before(job: Job, fault: Fault, vain: list[int]) -> CheckpointReader:
    """The newest sound one that is older than the fault by the margin, or else just older.

    What was gone back to in vain is passed over, with all that is newer.
    """
    unspoilt = min(vain, default=fault.first_step) - 1
    for safe in (fault.first_step - job.config.guard.margin_steps, fault.first_step - 1):
        reader, _ = newest_valid_for_all(
            job.run.checkpoints_dir, rank=job.world.rank, newest_step=min(safe, unspoilt)
        )
        if reader is not None:
            return reader
    raise EngineError(
        f"training: {fault.reason}; there is no checkpoint from before step "
        f"{unspoilt + 2} to go back to; {_ADVICE}"
    )


def _write_samples(job: Job, path: Path, batches: list[int]) -> None:
    """One line for each sample left out: its id, its shard, its place there."""
    split = job.manifest.split(job.config.data.train_split)
    order = train_order(job.manifest, job.config.data, job.config.seed)
    size = job.plan.global_batch
    ends = np.cumsum([shard.samples for shard in split.shards])
    lines = []
    for batch in batches:
        ids = order.batch(batch, size, 0, size).sample_ids
        for sample_id, number in zip(ids, np.searchsorted(ends, ids, side="right"), strict=True):
            shard = split.shards[number]
            place = sample_id - (ends[number] - shard.samples)
            lines.append(f"{sample_id}\t{shard.file}\t{place}")
    replace_text(path, "\n".join(lines) + "\n")
