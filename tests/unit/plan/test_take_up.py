"""Measured settings: their file, which runs take them up, and which refuse them and why."""

import json
from pathlib import Path

import pytest

from launch.planning import plan_part
from launch.request import load, parse
from pretrain.config.load import load_run
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError
from pretrain.plan import take_up as module
from pretrain.plan.render import render
from pretrain.plan.take_up import take_up, tuned_on, tuned_rate
from pretrain.plan.tuned import (
    Tuned,
    place_of,
    read_tuned,
    torch_version,
    tuned_path,
    values_of,
    work_of,
    write_tuned,
)
from pretrain.run_directory import RunDirectory, differing_fields

GPU = "NVIDIA H100 80GB HBM3"
SETTINGS = {
    "batch.micro_size_max": 128,
    "engine.activation_checkpointing": ["full", "none", "none", "none"],
    "engine.attention": "plain",
    "engine.layer_norm": "auto",
    "engine.cross_entropy": "auto",
    "engine.compile": True,
}


@pytest.fixture(autouse=True)
def eight_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setattr(module, "device_name_here", lambda _: GPU)


def loaded(*overrides: str, cluster: str = "local", run_name: str | None = None) -> RunConfig:
    return load_run("swin_l_22k", overrides, cluster=cluster, run_name=run_name)


def left(run: RunConfig, **changes: object) -> Path:
    """The file of a tuning of a config."""
    values = {
        "config": "swin_l_22k",
        "settings": SETTINGS,
        "instead_of": values_of(run),
        "work": work_of(run),
        "device": GPU,
        "torch": torch_version(),
        "place": place_of(run).model_dump(),
        "accumulation": 4,
        "images_per_second": 500.0,
        "images_per_second_before": 400.0,
        "peak_gib": 40.0,
        "device_gib": 79.0,
    }
    tuned = Tuned.model_validate_json(json.dumps(values | changes))
    path = tuned_path(run.runs_dir, "swin_l_22k", tuned.device)
    write_tuned(path, tuned)
    return path


def taken(*overrides: str, cluster: str = "local", run_name: str | None = None):
    config = loaded(*overrides, cluster=cluster, run_name=run_name)
    return take_up(config, "swin_l_22k", overrides)


def test_the_file_is_read_as_it_was_written():
    path = left(loaded())
    assert path == Path.cwd() / "runs" / "tuned" / "swin_l_22k-nvidia_h100_80gb_hbm3.yaml"
    tuned = read_tuned(path)
    assert tuned.settings == SETTINGS
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    write_tuned(path, tuned.model_copy(update={"peak_gib": 41.0}))
    assert read_tuned(path).peak_gib == 41.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no YAML"),
        ("- 1", "content"),
        ("config: a\n", "settings: Field required"),
        ("older", "settings: expected batch.micro_size_max"),
        ("newer", "settings: expected batch.micro_size_max"),
    ],
)
def test_a_damaged_file_is_refused(text, said):
    path = left(loaded())
    whole = path.read_text()
    from_others = {
        "newer": whole.replace("engine.compile: true", "optim.lr: 1.0"),
        "older": whole.replace("  engine.attention: plain\n", ""),  # from before there was one
    }
    path.write_text(from_others.get(text, text))
    with pytest.raises(ConfigError, match="remove it or tune again") as refusal:
        read_tuned(path)
    assert said in str(refusal.value)
    # Nothing is taken from it, and nobody is stopped who did not ask for it.
    config, lines = taken()
    assert (config.tuned, values_of(config)) == ("none", values_of(loaded()))
    assert [said in line for line in lines] == [True]


def test_a_run_takes_the_settings_that_fit_it_and_says_so_in_its_plan():
    path = left(loaded())
    config, said = taken()
    assert said == []
    assert values_of(config) == SETTINGS
    assert config.tuned == str(path)
    assert differing_fields(loaded(), config) == []  # nothing that is learnt
    text = plan_part(config).text()
    assert f"from {path} (tuned=none refuses it)" in text
    assert "4096 = 8 ranks x 128 micro-batch x 4 accumulation" in text


def test_the_plan_counts_hours_from_the_rate_that_was_measured():
    path = left(loaded())
    config, _ = taken()
    plan = plan_part(config).plan
    assert plan.cost.images_per_second == pytest.approx(8 * 500)
    assert f"as one {GPU} did when it was tuned" in plan.cost.assumption
    assert "500.0 images/s" in plan.cost.assumption
    assert "not measured" not in plan.cost.assumption
    # Not at another micro-batch, with other settings, or when the file is gone.
    assert tuned_rate(config, 64) is None
    assert tuned_rate(loaded(f"tuned={path}"), 8) is None
    assert tuned_on(config) == GPU
    path.unlink()
    assert (tuned_rate(config, 8), tuned_on(config)) == (None, None)


def test_the_rate_of_a_run_that_was_trained_goes_before_that_of_a_tuning():
    left(loaded())
    before, _ = taken(run_name="before")
    run = RunDirectory(Path(before.runs_dir) / before.name)
    run.create(before, plan_part(before).plan.to_json())  # pyright: ignore[reportAttributeAccessIssue]
    progress = {"step": 100, "images_per_second": 8 * 450.0, "state": "done"}
    run.progress_path.write_text(json.dumps(progress))
    assert "as run before measured: 450.0 images/s" in plan_part(taken()[0]).plan.cost.assumption
    # One with other settings did other work.
    assert "not measured" in plan_part(taken("tuned=none")[0]).plan.cost.assumption


def test_without_a_file_nothing_is_said():
    config, said = taken()
    assert (values_of(config), config.tuned, said) == (values_of(loaded()), "none", [])
    assert "tuned" not in plan_part(config).text()


def test_it_can_be_refused():
    left(loaded())
    config, said = taken("tuned=none")
    assert (values_of(config), said) == (values_of(loaded()), [])


def test_what_is_typed_wins_and_then_no_mixture_is_taken():
    left(loaded())
    config, said = taken("batch.micro_size_max=64")
    assert values_of(config) == values_of(loaded())
    assert "batch.micro_size_max=64 was given, and they are for batch.micro_size_max=128" in said[0]
    config, said = taken("engine.compile=true")  # as it was measured
    assert (values_of(config), said) == (SETTINGS, [])


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({}, ["model.image_size=448"], "made for model.image_size 224, and this run has 448"),
        ({}, ["engine.precision=fp32"], 'made for engine.precision "bf16", and this run has'),
        ({}, ["ema.decay=0.999"], "made for ema.decay null, and this run has 0.999"),
        ({"torch": "1.0"}, [], "made with torch 1.0, and this is"),
        ({"device": "NVIDIA A100"}, [], f"made on NVIDIA A100, and this machine has {GPU}"),
        (
            {"instead_of": {"batch.micro_size_max": 32}}, [],
            "made when the config said batch.micro_size_max=32, and it now says "
            "batch.micro_size_max=64",
        ),
    ],
)  # fmt: skip
def test_what_was_made_for_something_else_is_left_with_one_line(changes, overrides, said):
    path = left(loaded(), **changes)
    config, lines = taken(*overrides)
    assert values_of(config) == values_of(loaded())
    assert len(lines) == 1
    assert lines[0].startswith(f"tuned: {path} is not taken up: ")
    assert said in lines[0]
    if "instead_of" not in changes:
        with pytest.raises(ConfigError, match="tune again, or give tuned=none") as refusal:
            taken(*overrides, f"tuned={path}")
        assert said in str(refusal.value)


def test_a_config_that_was_edited_since_can_still_be_given_the_file():
    path = left(loaded(), instead_of={"batch.micro_size_max": 32})
    config, _ = taken(f"tuned={path}")
    assert values_of(config) == SETTINGS


def test_the_device_of_a_queue_is_known_by_where_it_is_had():
    place = {"executor": "slurm", "partition": "h100", "constraint": None}
    path = left(loaded(cluster="slurm"), place=place)
    at = "cluster.partition=h100", "cluster.gpus_per_node=8", "cluster.nodes=1"
    config, said = taken(*at, cluster="slurm")
    assert (values_of(config), said) == (SETTINGS, [])
    config, said = taken("cluster.partition=old", cluster="slurm")
    assert config.tuned == "none"
    assert "for jobs to partition h100, and this one goes to partition old" in said[0]
    config, _ = taken("cluster.partition=old", f"tuned={path}", cluster="slurm")
    assert values_of(config) == SETTINGS


def test_an_unknown_device_takes_a_file_only_by_its_path(monkeypatch: pytest.MonkeyPatch):
    path = left(loaded())
    monkeypatch.setattr(module, "device_name_here", lambda _: None)
    config, said = taken()
    assert config.tuned == "none"
    assert "what is here cannot be told" in said[0]
    assert values_of(taken(f"tuned={path}")[0]) == SETTINGS


def test_two_files_that_fit_leave_the_choice_to_a_person(monkeypatch: pytest.MonkeyPatch):
    place = {"executor": "slurm", "partition": None, "constraint": None}
    config = loaded(cluster="slurm")
    one, two = left(config, place=place), left(config, place=place, device="NVIDIA A100")
    config, said = taken(cluster="slurm")
    assert config.tuned == "none"
    assert said == [f"tuned: {two} and {one} both fit; tuned=PATH takes one of them"]


def test_the_files_of_other_configs_are_not_looked_at():
    path = left(loaded(), config="swin_l_22k-long")
    assert taken()[1] == []
    assert path.exists()


def begin(config: RunConfig) -> None:
    RunDirectory(Path(config.runs_dir) / config.name).create(config, "{}")


def test_a_run_goes_on_as_it_began_whatever_the_file_says_later():
    path = left(loaded())
    begun, _ = taken()
    begin(begun)
    left(loaded(), settings=SETTINGS | {"batch.micro_size_max": 256}, torch="1.0")
    config, said = taken()
    assert (config, said) == (begun, [])
    path.unlink()
    assert taken() == (begun, [])
    assert taken(run_name="another")[0].tuned == "none"
    config, said = taken("engine.compile=false")
    assert values_of(config) == values_of(loaded())
    assert "engine.compile=false was given" in said[0]
    config, said = taken("engine.zero_stage=2")
    assert values_of(config) == values_of(loaded())
    assert "measured for other work" in said[0]


def test_a_run_that_began_without_goes_on_without():
    begin(taken()[0])
    path = left(loaded())
    config, said = taken()
    assert (values_of(config), config.tuned) == (values_of(loaded()), "none")
    assert said == [
        f"tuned: {path} is not taken up: run swin_l_22k goes on as it began; tuned=PATH takes it"
    ]
    assert values_of(taken(f"tuned={path}")[0]) == SETTINGS


def test_the_launcher_takes_it_up_for_runs_and_points_of_sweeps(capsys: pytest.CaptureFixture[str]):
    left(loaded())
    command = ["--config", "swin_l_22k", "--cluster", "local"]
    assert [values_of(c) for c in load(parse([*command, "--name", "mine"])).configs] == [SETTINGS]
    swept = load(parse([*command, "--sweep", "seed=0,1"])).configs
    assert [values_of(config) for config in swept] == [SETTINGS, SETTINGS]
    capsys.readouterr()
    swept = load(parse([*command, "--sweep", "engine.compile=false,true"])).configs
    assert [config.engine.compile for config in swept] == [False, True]
    assert [config.batch.micro_size_max for config in swept] == [64, 128]
    assert "engine.compile=false was given" in capsys.readouterr().err


def test_render_says_nothing_of_settings_that_were_not_measured():
    config, _ = taken()
    assert "tuned " not in render(config, plan_part(config).plan)  # pyright: ignore[reportArgumentType]
