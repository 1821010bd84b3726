"""The command that launches runs: ``python launch/slurm.py --config NAME [key=value …]``."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Python puts launch/ first; its modules are no top-level names, and this source tree is meant.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.launching import build_missing, submit
from launch.planning import Part, plan_part
from launch.preflight import check
from launch.request import Request, check_request, load, parse
from launch.script import ask_slurm, render, sbatch_script
from launch.status import Queue, job_to_wait_for, look
from launch.sweep import sweep_spec
from pretrain.errors import run_command
from pretrain.plan.render import total_cost
from pretrain.preflight import manifest_if_built
from pretrain.run_directory import RunDirectory


def main(arguments: list[str]) -> int:
    """Launch, plan or only show what would be launched.

    Returns:
        0, or when following the exit code of the runs: 70 failed, 75 stopped.

    Raises:
        PretrainError: anything that cannot be launched; nothing was written then.
    """
    options = parse(arguments)
    request = load(options)
    configs = request.configs
    if options.plan:
        _print_plans([plan_part(config) for config in configs])
        return 0
    if options.dry_run:
        _check(request)
        _show(request, slurm=configs[0].cluster.executor == "slurm")
        return 0
    command = ["python", "launch/slurm.py", *arguments]
    return launch(request, command=command, follow_on=options.follow)


def launch(request: Request, *, command: Sequence[str], follow_on: bool | None) -> int:
    """Check, plan and submit runs, and follow them.

    Args:
        request: the runs, all for the same executor.
        command: what was typed, for the record.
        follow_on: watch until the end; None does so for runs on this machine.

    Returns:
        0, or when following the exit code of the runs: 70 failed, 75 stopped.

    Raises:
        PretrainError: anything that cannot be launched; nothing was written then.
    """
    _check(request)
    configs = request.configs
    build_missing(configs)
    parts = [plan_part(config) for config in configs]
    _print_plans(parts)
    active = submit(
        parts,
        command=command,
        sweep=request.sweep,
        concurrent=request.concurrent,
        after=request.after,
    )
    if follow_on or (follow_on is None and configs[0].cluster.executor != "slurm"):
        from launch.look_after.follow import follow

        return follow([part.run for part in parts], independent=request.sweep is not None)
    if active:
        print("watch: the same command with --follow, or python launch/runs.py follow RUN")
    return 0


def _check(request: Request) -> None:
    check_request(request)
    for warning in check(request.configs):
        print(f"warning: {warning}", file=sys.stderr)


def _print_plans(parts: Sequence[Part]) -> None:
    print("\n\n".join(part.text() for part in parts), flush=True)
    if len(parts) > 1:
        print(f"\n{total_cost([part.plan for part in parts])}", flush=True)


def _show(request: Request, *, slurm: bool) -> None:
    names = {config.name for config in request.configs}
    job = job_to_wait_for(request.after, Queue())
    after = [] if job is None else [job]
    new: list[Part] = []
    for part in map(plan_part, request.configs):
        print(part.text())
        if part.config.task == "train" and manifest_if_built(part.config) is None:
            print(f"would build the data: {part.config.data.build}")
        print(f"would create {part.run.path}" if not part.run.exists else f"uses {part.run.path}")
        status = look(part.run, Queue())
        if status.phase == "done" or status.is_active:
            print(f"would submit nothing: {status.phase}: {status.detail}")
            continue
        if part.config.init_from in names:
            how = " (sbatch --dependency=afterok: and the number of its job)" if slurm else ""
            print(f"would wait for {part.config.init_from}{how}")
        if not slurm:
            ranks = f"{part.plan.ranks_per_node} ranks"
            print(f"would start a supervisor on this machine with {ranks}: {_rank_line(part.run)}")
            continue
        new.append(part)
        if request.sweep is None:
            _show_job(sbatch_script(part.config, part.plan.ranks_per_node, after))
    if new and request.sweep is not None:
        ranks = new[0].plan.ranks_per_node
        _show_job(render(sweep_spec(request.sweep, len(new), ranks, request.concurrent, after)))


def _show_job(script: str) -> None:
    print(script)
    print(f"sbatch --test-only: {ask_slurm(script).text}")


def _rank_line(run: RunDirectory) -> str:
    from launch.supervise.ranks import rank_command

    return shlex.join(rank_command(run))


if __name__ == "__main__":
    run_command(main)
