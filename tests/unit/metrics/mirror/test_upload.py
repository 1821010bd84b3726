"""Saving the dashboards, against a server that keeps views and against ones that do not."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from wandb_servers import ENTITY, FAULTS, FakeWandb, environment, faulty, processes_of, wait_until

from pretrain.errors import ConfigError, WandbError
from pretrain.metrics.__main__ import main
from pretrain.metrics.mirror.dashboard import SECTIONS
from pretrain.metrics.mirror.upload import upload

ROOT = Path(__file__).parents[4]


def dashboard(port, home, *arguments, **variables):
    """Run the command against the server on that port."""
    surroundings = {name: text for name, text in os.environ.items() if "WANDB" not in name}
    return subprocess.run(
        [sys.executable, "-m", "pretrain.metrics", "dashboard", "--project", "shapes", *arguments],
        cwd=ROOT,
        env=surroundings | environment(port) | {"HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def fake():
    with closing(FakeWandb()) as server:
        yield server


def test_what_is_saved_is_renewed_by_the_next_run(fake, tmp_path):
    done = dashboard(fake.port, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    site = f"http://127.0.0.1:{fake.port}/{ENTITY}/shapes"
    assert done.stdout == (
        f"report made: {site}/reports/Pre-training--view0\nworkspace made: {site}?nw=swinpretrain\n"
    )
    assert fake.projects == {"shapes"}

    # What people do with it: choose runs, spoil panels, write a report of the same title.
    report, workspace = fake.views.values()
    spec = json.loads(workspace["spec"])
    spec["section"]["runSets"][0]["search"]["query"] = "tiny"
    spec["section"]["panelBankConfig"]["sections"] = []
    workspace["spec"] = json.dumps(spec)
    by_hand = fake.views["by hand"] = report | {"description": "Mine.", "name": "other"}

    again = dashboard(fake.port, tmp_path, "--evaluations-over", "samples")
    assert again.stdout == done.stdout.replace("made", "renewed")
    assert len(fake.views) == 3
    assert fake.views["by hand"] is by_hand
    report, workspace, _ = fake.views.values()
    spec = json.loads(workspace["spec"])
    assert spec["section"]["runSets"][0]["search"]["query"] == "tiny"
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    assert all('"xAxis":"samples"' in view["spec"] for view in (report, workspace))
    sent = [name for name in fake.operations() if name.lower().startswith("upsertview")]
    assert sent == ["upsertView", "UpsertView2"] * 2


REASONS = {
    "refused": "Connection refused",
    "hangs": "no answer within",
    "500": "answers 500",
    "401": "Failed to verify credentials",
    "bytewise": "no answer within",
    "dies": "connection reset",
}


@pytest.mark.slow
def test_a_server_that_does_not_serve_is_one_line(tmp_path):
    def attempt(fault):
        with faulty(fault) as server:
            return dashboard(server.port, tmp_path, WANDB_HTTP_TIMEOUT="2")

    with ThreadPoolExecutor(len(FAULTS)) as pool:
        for fault, done in zip(FAULTS, pool.map(attempt, FAULTS), strict=True):
            assert (done.returncode, done.stdout) == (2, ""), fault
            assert done.stderr.startswith("error: wandb: "), fault
            assert done.stderr.count("\n") == 1, fault
            assert REASONS[fault] in done.stderr, fault


@pytest.mark.slow
def test_a_refusal_is_one_line(fake, tmp_path):
    fake.refusal = "permission denied"
    done = dashboard(fake.port, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "permission denied" in done.stderr


def test_nobody_logged_in_is_one_line(fake, tmp_path):
    done = dashboard(fake.port, tmp_path, WANDB_API_KEY="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "wandb login" in done.stderr


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(ConfigError, match="--entity 'a/b': expected letters"):
        main(["dashboard", "--project", "shapes", "--entity", "a/b"])


def test_the_time_limit_ends_everything_that_was_started(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with faulty("hangs") as server:
        for name, text in environment(server.port).items():
            monkeypatch.setenv(name, text)
        with pytest.raises(WandbError, match="not saved within 2 s"):
            upload("shapes", None, "global_step", seconds=2)
    wait_until(lambda: not processes_of(server.port))
