"""A run of results: the weights of another run evaluated, and written in other layouts."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pretrain.config.schema import RunConfig
from pretrain.convert.__main__ import convert
from pretrain.convert.__main__ import parser as convert_parser
from pretrain.convert.targets import path_in
from pretrain.evaluate.__main__ import TIMEOUT_SECONDS, evaluate, look
from pretrain.evaluate.options import parser as evaluate_parser
from pretrain.files import read_json, replace_text
from pretrain.plan.results import evaluated_sets
from pretrain.preflight import initial_weights_path
from pretrain.run_directory import RunDirectory
from pretrain.stop import STOP_SIGNALS
from pretrain.world import World


class _Stopped(BaseException):
    """A signal asked to leave. Nothing half-written counts, so it may come at any point."""


def make_results(run: RunDirectory, config: RunConfig, world: World, attempt: int) -> None:
    """Evaluate and convert what the config says. **Every rank**, before any group exists.

    What an earlier attempt wrote in another layout is kept; accuracy is measured again. Where a
    signal asks to stop, the process leaves.

    Raises:
        PretrainError: bad input, or a conversion that does not compute the same.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)
    tell = _teller(run, config, attempt) if world.rank == 0 else lambda step, state: None
    try:
        _evaluate(run, config, world, tell)
    except _Stopped:
        tell(0, "stopped")
        if world.rank == 0:
            run.leave_outcome(attempt, "stopped", 0)
        os._exit(0)  # a collective may be under way
    if world.rank == 0:
        run.leave_outcome(attempt, "done", 1 + len(config.results.convert))


def _evaluate(
    run: RunDirectory, config: RunConfig, world: World, tell: Callable[[int, str], None]
) -> None:
    weights = initial_weights_path(config)
    assert weights is not None  # noqa: S101 - for the type checker: results have a source
    export = RunDirectory(weights).export_dir
    options = evaluate_parser().parse_args(_evaluate_arguments(run, config, export))
    checked, refusal = look(options, world)
    # Only now is torch worth its seconds.
    import torch

    from pretrain import dist

    dist.initialize(world, torch.device("cpu"), TIMEOUT_SECONDS)
    try:
        tell(0, "evaluating")
        evaluate(options, world, checked, refusal)
        with dist.refusing_together():
            if world.rank == 0:
                _convert_all(run, config, export, tell)
    finally:
        dist.shutdown()  # or the threads of the groups may abort a process that ends
    tell(1 + len(config.results.convert), "done")


def _evaluate_arguments(run: RunDirectory, config: RunConfig, export: Path) -> list[str]:
    sets = evaluated_sets(config)
    arguments = [str(export), "--output", str(run.evaluation_dir), "--name", str(config.init_from)]
    for path, _ in sets:
        arguments += ["--data", path]
    if sets[0][1] is not None:
        arguments += ["--split", sets[0][1]]
    if config.results.real_labels is not None:
        arguments += ["--real", config.results.real_labels]
    if config.data.cache_dir is not None:
        arguments += ["--cache-dir", config.data.cache_dir]
    arguments += ["--workers", str(config.data.workers_per_rank)]
    arguments += ["--batch-size", str(config.eval.batch_size_per_rank)]
    return [*arguments, "--device", config.cluster.device]


def _convert_all(
    run: RunDirectory, config: RunConfig, export: Path, tell: Callable[[int, str], None]
) -> None:
    run.converted_dir.mkdir(exist_ok=True)
    for index, layout in enumerate(config.results.convert):
        target = path_in(run.converted_dir, layout)
        tell(1 + index, "converting")
        if not target.exists():  # written by one rename
            arguments = [str(export), str(target), "--to", layout, "--verify"]
            convert(convert_parser().parse_args(arguments))


def _teller(run: RunDirectory, config: RunConfig, attempt: int) -> Callable[[int, str], None]:
    """Return what says in progress.json how far rank zero is, and the accuracy once it is known."""
    total = 1 + len(config.results.convert)

    def tell(step: int, state: str) -> None:
        measured = read_json(run.evaluation_dir / f"{config.init_from}.json") if step else None
        first = (measured or {}).get("sets", [{}])[0]
        standing = {
            "state": state,
            "step": step,
            "total_steps": total,
            "eval_top1_fraction": first.get("top1_fraction"),
            "time": time.time(),
            "attempt": attempt,
        }
        replace_text(run.progress_path, json.dumps(standing) + "\n")

    return tell


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped
