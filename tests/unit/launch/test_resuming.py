"""Which config a resumed run gets, and what is refused."""

from pathlib import Path

import pytest
from fabricated import contents, make_run

from launch.look_after.resuming import config_to_resume
from pretrain.errors import PretrainError


def test_fields_that_do_not_decide_what_is_learnt_can_be_given(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = contents(run.path)
    config = config_to_resume(run, ["cluster.nodes=1", "log.every_steps=7", "cluster.nodes=3"])
    assert (config.cluster.nodes, config.log.every_steps) == (3, 7)
    assert config.model_copy(update={"cluster": None, "log": None}) == run.read_config().model_copy(
        update={"cluster": None, "log": None}
    )
    assert config_to_resume(run, []) == run.read_config()
    assert contents(run.path) == before


def test_a_preset_that_was_chosen_at_the_launch_is_no_obstacle(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = run.config_path.read_text()
    assert "preset: null" in text
    run.config_path.write_text(text.replace("preset: null", "preset: paper"))
    assert config_to_resume(run, ["cluster.nodes=2"]).preset == "paper"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=2", "optim.lr: decides what is learnt: the run has 0.001, got 2.0"),
        ("name=other", "name: decides what is learnt"),
        ("runs_dir=/elsewhere", "runs_dir: a run is resumed where it is"),
        ("cluster.nodez=2", "did you mean 'cluster.nodes'?"),
        ("cluster.nodes", "expected section.field=value"),
        ("tuned=none", "tuned: a run goes on with the settings it has; give the fields themselves"),
    ],
)
def test_other_fields_are_refused(tmp_path: Path, override: str, message: str) -> None:
    run = make_run(tmp_path)
    with pytest.raises(PretrainError) as caught:
        config_to_resume(run, [override])
    assert message in str(caught.value)


def test_settings_that_are_changed_are_no_longer_the_measured_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = run.config_path.read_text()
    assert "tuned: auto" in text
    run.config_path.write_text(text.replace("tuned: auto", "tuned: /there/first-gpu.yaml"))
    assert config_to_resume(run, ["cluster.nodes=2"]).tuned == "/there/first-gpu.yaml"
    changed = config_to_resume(run, ["batch.micro_size_max=1"])
    assert (changed.tuned, changed.batch.micro_size_max) == ("none", 1)


def test_a_moved_run_goes_on_where_it_is_and_a_renamed_one_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = type(run)(tmp_path / "after" / "first")
    assert config_to_resume(moved, []).runs_dir == str(tmp_path / "after")
    moved.path.rename(tmp_path / "after" / "renamed")
    with pytest.raises(PretrainError, match="holds the run first; rename the directory"):
        config_to_resume(type(run)(tmp_path / "after" / "renamed"), [])
