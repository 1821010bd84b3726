"""Configs by name: merging, strictness, and every refusal with its line."""

from pathlib import Path

import pytest

from pretrain.config.load import config_names, expand_chain, load_run, read_run, to_yaml
from pretrain.errors import ConfigError

MINIMAL = """\
data: {path: shards/some}
model: {variant: swin_t, image_size: 224, window_size: 7, num_classes: 10}
optim: {lr: 1e-3}
schedule: {epochs: 3}
batch: {global_size: 128, micro_size_max: 64}
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(*args, **kwargs)
    return str(caught.value)


def test_a_file_takes_its_name_and_defaults(tmp_path):
    config = load_run(write(tmp_path, MINIMAL))
    assert config.name == "run"
    assert config.optim.lr == 1e-3  # YAML 1.1 alone would read this as text
    assert config.augment.mixup_alpha == 0.8
    assert config.cluster.executor == "local"


def test_overrides_win_over_the_file_and_the_file_over_the_cluster():
    config = load_run("swin_l_22k", ["optim.lr=2e-3", "cluster.nodes=8"], cluster="slurm")
    assert config.optim.lr == 2e-3
    assert config.cluster.nodes == 8  # override over the recipe's 4
    assert config.cluster.gpus_per_node == 8  # the cluster file's
    assert load_run("swin_l_22k", cluster="slurm").cluster.nodes == 4


def test_bases_merge_mappings_and_the_file_wins():
    config = load_run("swin_l_22k_to_1k_384")
    assert (config.model.image_size, config.model.window_size) == (384, 12)
    assert config.optim.lr == 4e-5  # from the base of its base
    assert config.eval.resize is None  # null in the middle base replaces 256


def test_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_run("swin_l_22k_to_1k_224")
    assert config.data.path == str(tmp_path / "shards/imagenet1k")
    assert config.runs_dir == str(tmp_path / "runs")
    assert config.init_from == "swin_l_22k"
    config = load_run("swin_l_22k_to_1k_224", ["init_from=./export"])
    assert config.init_from == str(tmp_path / "export")


def test_a_resolved_config_reads_back_equal(tmp_path):
    config = load_run("swin_b_1k", ["optim.lr=3.3e-7", "seed=4"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_run(tmp_path / "config.yaml") == config


def test_a_chain_expands_and_a_run_stays(tmp_path):
    assert expand_chain(["demo", "swin_t_1k"]) == ["demo_pretrain", "demo_finetune", "swin_t_1k"]
    mixed = write(tmp_path, "chain: [demo]\nseed: 1\n")
    with pytest.raises(ConfigError, match="a chain holds nothing but"):
        expand_chain([mixed])
    assert "a chain cannot be loaded as one run" in refusal("demo")


def test_all_problems_are_reported_at_once_each_with_where_and_what():
    message = refusal(
        "swin_l_22k",
        ["optim.lrr=1", "optm.lr=2", "seed=1.5", "engine.zero_stage=0", "model.num_classes=ten"],
    )
    lines = message.splitlines()
    assert len(lines) == 5
    assert "override 'optim.lrr=1': optim.lrr: unknown key; did you mean 'optim.lr'?" in lines
    assert "override 'optm.lr=2': optm: unknown key; did you mean 'optim'?" in lines
    assert any("seed: input should be a valid integer" in line for line in lines)
    assert any(
        "engine.zero_stage: stage 0 applies steps that are not finite" in line for line in lines
    )
    assert any("model.num_classes: input should be a valid integer" in line for line in lines)


def test_an_error_in_a_file_names_its_line(tmp_path):
    path = write(tmp_path, MINIMAL + "log:\n  every_stepss: 3\n")
    assert f"{path}:7: log.every_stepss: unknown key; did you mean 'log.every_steps'?" == refusal(
        path
    )


def test_a_missing_field_says_how_to_give_it(tmp_path):
    path = write(tmp_path, MINIMAL.replace("optim: {lr: 1e-3}\n", ""))
    assert "optim: not set" in refusal(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "seed: 1\nseed: 2\n", "duplicate key"),
        (MINIMAL + "runs_dir: ${oc.env:HOME}\n", "is not supported"),
        ("- a\n- b\n", "expected 'key: value' lines"),
        (MINIMAL + "seed: [1\n", "run.yaml:"),
        ("", "not set"),
        (MINIMAL + "1: 2\n", "1: unknown key; expected text"),
        (MINIMAL + "optim.eps: 1e-6\n", "in a file write 'optim:' and 'eps:' indented below it"),
    ],
)
def test_files_that_are_no_config_are_refused_in_one_line(tmp_path, text, expected):
    message = refusal(write(tmp_path, text))
    assert expected in message
    assert "Traceback" not in message


def test_binary_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00bad")
    assert "cannot be read" in refusal(str(path))
    assert "no such file" in refusal(str(tmp_path / "absent.yaml"))


def test_unknown_names_suggest_the_nearest():
    assert "did you mean 'swin_l_22k'?" in refusal("swin_l_22")
    assert "did you mean 'slurm'?" in refusal("swin_l_22k", cluster="slrum")
    assert "there are" in refusal("zzz")


def test_a_circle_of_bases_is_refused(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(f"base: {second}\n")
    second.write_text(f"base: {first}\n")
    assert "in a circle" in refusal(str(first))
    first.write_text("base: 3\n")
    assert "base: expected the name of a config" in refusal(str(first))


@pytest.mark.parametrize("item", ["foo", "=3", "a b=1", "data..path=x"])
def test_overrides_must_be_key_value(item):
    assert "expected section.field=value" in refusal("swin_l_22k", [item])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("augment.crop_scale=[1.0,0.08]", "crop_scale: expected 0 < low <= high"),
        ("augment.mix_group=7", "mix_group: expected an even number, got 7"),
        ("schedule.warmup_epochs=90", "warmup_epochs: expected less than epochs (90)"),
        ("engine.precision=fp8", "input should be 'bf16', 'fp16' or 'fp32'"),
        ("optim.lr=-1", "greater than 0"),
        ("optim.lr=.inf", "finite number"),
        ("name=../escape", "expected up to 150 letters, digits"),
        ("model.depths=[1,1]", "model.depths: too few values, got [1, 1]"),
        ('cluster.partition="a b"', "cluster.partition: expected names of letters"),
        ('cluster.setup=["a\\nb"]', "expected one line per entry"),
    ],
)
def test_values_out_of_range_are_refused(override, expected):
    assert expected in refusal("swin_l_22k", [override])


def test_fp32_gradients_are_not_reduced_in_bf16():
    overrides = ["engine.precision=fp32", "engine.reduce_dtype=bf16"]
    assert "reduce_dtype: bf16 needs precision: bf16" in refusal("swin_l_22k", overrides)


def test_every_shipped_config_loads():
    names = config_names()
    assert len(names) >= 15
    for name in names:
        for part in expand_chain([name]):
            assert load_run(part).name == part
