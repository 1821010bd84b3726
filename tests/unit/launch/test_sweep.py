"""The points of a sweep: which there are, what they are called, what is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.script import JobSpec
from launch.submit import Job
from launch.sweep import load_sweep, read_axis, submit_sweep, sweep_spec
from pretrain.config.load import load_run
from pretrain.errors import LaunchError, PretrainError
from pretrain.run_directory import RunDirectory


def names(*texts: str, overrides: tuple[str, ...] = ()) -> list[str]:
    sweep = load_sweep("swin_t_1k", texts, overrides, cluster="slurm", run_name="t")
    return [config.name for config in sweep.configs]


def test_the_product_in_order_with_readable_names() -> None:
    assert names("optim.lr=1e-3,2e-3", "seed=0,1") == [
        *("t--optim.lr=0.001--seed=0", "t--optim.lr=0.001--seed=1"),
        *("t--optim.lr=0.002--seed=0", "t--optim.lr=0.002--seed=1"),
    ]


def test_a_point_is_its_config_and_nothing_else() -> None:
    (_, second) = load_sweep("swin_t_1k", ["seed=0,7"], ["optim.lr=1e-3"], cluster="slurm").configs
    alone = load_run(
        "swin_t_1k",
        ["optim.lr=1e-3", "seed=7"],
        cluster="slurm",
        run_name="swin_t_1k--seed=7",
    )
    assert second == alone


def test_values_that_no_name_can_say_are_told_by_a_digest() -> None:
    first, second = names("model.depths=[1,1,2,1],[1,1,3,1]")
    assert first.startswith("t--model.depths=1-1-2-1-")
    assert second.startswith("t--model.depths=1-1-3-1-")
    (null, plain) = names("augment.randaugment=null,rand-m9-mstd0.5")
    assert (null, plain) == (
        "t--augment.randaugment=null",
        "t--augment.randaugment=rand-m9-mstd0.5",
    )
    (path,) = names(f"data.path=/{'long/' * 40}x")
    assert len(path) < 80


def test_commas_within_brackets_and_quotes_belong_to_a_value() -> None:
    assert read_axis("a.b=[1,2],{c: 1, d: 2},'x,y', z").values == (
        *("[1,2]", "{c: 1, d: 2}", "'x,y'", "z"),
    )


@pytest.mark.parametrize(
    ("texts", "overrides", "expected"),
    [
        (["seed"], [], "--sweep seed: expected section.field=value"),
        (["=1"], [], "expected section.field=value"),
        (["seed="], [], "expected section.field=value"),
        (["seed=1,,2"], [], "expected section.field=value"),
        (["seed=1,2", "seed=3"], [], "--sweep seed: the field is given twice"),
        (["seed=1,2"], ["seed=3"], "--sweep seed: the field is given twice"),
        (["optim.lr=1e-3,0.001"], [], "optim.lr=1e-3 and optim.lr=0.001 are the same point"),
        (["sed=1"], [], "sed: unknown key; did you mean 'seed'"),
        (["seed=1,x"], [], "override 'seed=x': seed: input should be a valid integer"),
        (["ema={decay: 0.9},{decay: 0.99}"], [], "--sweep ema: expected a field, got a section"),
        (["name=a,b"], [], "--sweep name"),
        (["cluster.nodes=1,2"], [], "share one job array"),
        ([f"seed={','.join(map(str, range(1001)))}"], [], "more than 1000 points"),
        ([f"data.train_split={'x' * 40}", f"data.eval_split={'y' * 40}"] * 2, [], "given twice"),
    ],
)
def test_bad_sweeps_are_one_line(texts: list[str], overrides: list[str], expected: str) -> None:
    with pytest.raises(PretrainError) as refusal:
        load_sweep("swin_t_1k", texts, overrides, cluster="slurm")
    (line,) = str(refusal.value).splitlines()
    assert expected in line


def test_names_that_are_too_long_are_refused() -> None:
    with pytest.raises(PretrainError, match="--name gives another"):
        load_sweep("swin_t_1k", ["seed=0"], cluster="slurm", run_name="x" * 150)


def test_every_submission_has_a_directory_of_its_own(tmp_path: Path) -> None:
    sweep = load_sweep("swin_t_1k", ["seed=0,1"], [f"runs_dir={tmp_path}"], cluster="slurm")
    first = sweep_spec(sweep, 2, 8, None)
    assert first.directory == tmp_path / "swin_t_1k.sweep" / "001" / "code"
    assert (first.name, first.elements) == ("swin_t_1k", 2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "swin_t_1k.sweep" / "012").mkdir(parents=True)
    assert sweep_spec(sweep, 2, 8, 1).directory.parent.name == "013"


def test_what_slurm_refuses_leaves_nothing_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(runs: Sequence[RunDirectory], spec: JobSpec) -> list[Job]:
        assert (len(runs), spec.directory.is_dir()) == (2, True)
        raise LaunchError("sbatch refuses the job")

    monkeypatch.setattr("launch.sweep.copy_source", lambda run: run.code_path.mkdir())
    monkeypatch.setattr("launch.sweep.submit_array", refuse)
    sweep = load_sweep("swin_t_1k", ["seed=0,1"], [f"runs_dir={tmp_path}"], cluster="slurm")
    runs = [RunDirectory(tmp_path / config.name) for config in sweep.configs]
    with pytest.raises(LaunchError, match="sbatch refuses"):
        submit_sweep(sweep, runs, sweep_spec(sweep, 2, 8, None))
    assert list((tmp_path / "swin_t_1k.sweep").iterdir()) == []
