"""Presets: named differences inside a file, chosen by one field."""

import pytest

from pretrain.config.load import load_run, read_run, to_yaml
from pretrain.errors import ConfigError

BASE = """\
data: {path: shards/some}
model: {variant: swin_t, image_size: 224, window_size: 7, num_classes: 10}
optim: {lr: 1e-3, weight_decay: 0.05}
schedule: {epochs: 3}
batch: {global_size: 128, micro_size_max: 64}
preset: plain
presets:
  plain: {}
  other:
    optim: {weight_decay: 0.01}
    schedule:
      kind: linear
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    child = tmp_path / "child.yaml"
    child.write_text(
        f"base: {tmp_path}/base.yaml\n"
        "optim: {weight_decay: 0.3}\n"
        "presets:\n  other:\n    model: {drop_path: 0.1}\n  third: {seed: 7}\n"
    )
    return str(child)


def refusal(*args) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(*args)
    return str(caught.value)


def test_the_file_names_its_own_preset_and_an_override_another(files):
    config = load_run(files)
    assert (config.preset, config.optim.weight_decay, config.schedule.kind) == (
        "plain", 0.3, "cosine"
    )  # fmt: skip
    config = load_run(files, ["preset=other"])
    assert config.preset == "other"
    # What the base says in a preset goes above what the child says outside of it.
    assert (config.optim.weight_decay, config.schedule.kind) == (0.01, "linear")
    assert config.model.drop_path == 0.1
    assert config.optim.lr == 1e-3
    assert load_run(files, ["preset=third"]).seed == 7


def test_overrides_win_over_the_preset(files):
    config = load_run(files, ["optim.weight_decay=0.2", "preset=other"])
    assert (config.optim.weight_decay, config.schedule.kind) == (0.2, "linear")


def test_no_preset_is_what_the_files_say(files):
    config = load_run(files, ["preset=null"])
    assert (config.preset, config.optim.weight_decay) == (None, 0.3)


def test_the_resolved_config_keeps_the_name_and_needs_no_presets(files, tmp_path):
    config = load_run(files, ["preset=other"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert read_run(tmp_path / "resolved.yaml") == config


def test_an_unknown_preset_names_those_there_are(files, tmp_path):
    message = refusal(files, ["preset=papre"])
    assert message == (
        "override 'preset=papre': preset: no preset 'papre'; there are other, plain, third"
    )
    bare = tmp_path / "bare.yaml"
    bare.write_text(BASE.partition("preset:")[0])
    assert refusal(str(bare), ["preset=paper"]).endswith("this config has none")


def test_a_mistake_in_a_preset_names_its_line(files, tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE.replace("kind: linear", "kind: linaer"))
    assert refusal(files, ["preset=other"]).startswith(
        f"{path}:12: schedule.kind: input should be 'cosine', 'linear', 'constant' or "
    )
    load_run(files)  # a preset that is not chosen is not looked at


@pytest.mark.parametrize("presets", ["[a, b]", "{a: 3}", "{a: {preset: b}}", "null"])
def test_presets_of_another_form_are_refused(tmp_path, presets):
    path = tmp_path / "run.yaml"
    path.write_text(BASE.partition("presets:")[0] + f"presets: {presets}\n")
    assert f"{path}:7: presets: expected 'NAME:' and fields below each" in refusal(str(path))


def test_a_number_for_a_name_is_refused(files):
    assert "preset: input should be a valid string, got 3" in refusal(files, ["preset=3"])
