"""Saves the dashboards of a project to Weights & Biases, from a process of its own.

What the library prints, asks or waits for stays in that process, which is ended with all that it
started: whoever types the command gets two addresses or one line that says why not, in bounded
time. Saved again, both are renewed where they are: the workspace is known by its name in the
address, the report by its title and description. What people changed in their panels is
overwritten; which runs the workspace shows, and in which colours, is kept.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.errors import WandbError
from pretrain.metrics.mirror.dashboard import Axis
from pretrain.metrics.mirror.probe import server_problem

UPLOAD_SECONDS = 90.0
"""Longest time that both take together."""
REQUEST_SECONDS = 15
"""Longest wait for one answer, unless WANDB_HTTP_TIMEOUT says otherwise."""
VIEW = "swinpretrain"
"""The workspace's name in its address, ``…/PROJECT?nw=swinpretrain``."""
LONGEST_REASON = 400


def upload(
    project: str, entity: str | None, evaluation_axis: Axis, *, seconds: float = UPLOAD_SECONDS
) -> list[str]:
    """Save the workspace and the report of a project; return a line about each.

    Credentials are wandb's own: WANDB_API_KEY or what ``wandb login`` left.

    Args:
        project: whose runs they show; made where there is none.
        entity: user or team; None takes WANDB_ENTITY or the account's default.
        evaluation_axis: horizontal axis of the panels of evaluations.
        seconds: time limit.

    Raises:
        WandbError: nobody is logged in, or the server is away, too slow, or refuses.
    """
    wanted = json.dumps({"project": project, "entity": entity, "axis": evaluation_axis})
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pretrain.metrics.mirror.upload", wanted],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.DEVNULL,  # it must not ask for a key
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise WandbError(f"wandb: not saved within {seconds:g} s; try again later") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the library's service too
            process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    said = [line.removeprefix("saved: ") for line in lines if line.startswith("saved: ")]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if process.returncode or reasons:
        last = reasons[-1] if reasons else f"its process ended with code {process.returncode}"
        raise WandbError(f"wandb: {last}")
    return said


def main(wanted: dict[str, Any]) -> int:
    """Save both and print about each; the exit code. The body of the process."""
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(REQUEST_SECONDS))
    try:
        import wandb

        api = wandb.Api()
        entity = wanted["entity"] or api.settings["entity"] or api.default_entity
        if not entity:
            raise ValueError("the account has no default entity; give --entity")
        # First the report: it makes the project where there is none.
        said = [
            save(api, entity, wanted["project"], wanted["axis"]) for save in (_report, _workspace)
        ]
    except Exception as error:  # noqa: BLE001 - whatever wandb raises, a line must come of it
        print(f"error: {_explained(error)}", flush=True)  # noqa: T201
        return 1
    for line in said:
        print(f"saved: {line}", flush=True)  # noqa: T201
    return 0


def _report(api: Any, entity: str, project: str, axis: Axis) -> str:
    from pretrain.metrics.mirror import views

    report = views.report(entity, project, axis)
    known = [
        one.id
        for one in _reports(api, f"{entity}/{project}")
        if (one.display_name, one.description) == (report.title, report.description)
    ]
    if known:
        report.id = known[0]
    report.save()
    return f"report {'renewed' if known else 'made'}: {report.url}"


def _reports(api: Any, path: str) -> list[Any]:
    try:
        return list(api.reports(path))
    except ValueError:  # there is no such project
        return []


def _workspace(api: Any, entity: str, project: str, axis: Axis) -> str:
    from pretrain.metrics.mirror import views

    fresh = views.workspace(entity, project, axis)
    try:
        saved = fresh.from_url(f"{api.settings['base_url']}/{entity}/{project}?nw={VIEW}")
    except ValueError:  # there is none
        fresh._internal_name = f"nw-{VIEW}-v"  # else a random one, by which nobody finds it again
        fresh.save()
        return f"workspace made: {fresh.url}"
    saved.name, saved.sections, saved.settings = fresh.name, fresh.sections, fresh.settings
    saved.save()
    return f"workspace renewed: {saved.url}"


def _explained(error: Exception) -> str:
    """Why it failed, in one line: what the server does where that says more than the library."""
    reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
    if isinstance(error, ImportError | ValueError):
        return reason
    from wandb.errors import UsageError

    if isinstance(error, UsageError):  # nobody is logged in
        return reason
    if wrong := server_problem():
        return f"{wrong}; see WANDB_BASE_URL and the network"
    if "did not respond in time" in reason:  # it says so of its own service, which waited
        return f"no answer within {os.environ['WANDB_HTTP_TIMEOUT']} s"
    return reason


if __name__ == "__main__":
    exit_code = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(exit_code)  # wandb's own exit hooks may hang
