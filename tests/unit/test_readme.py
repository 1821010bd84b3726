"""The README's recipe table is what the configs' headers say, and the headers are complete."""

import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from pretrain.config.load import config_names, expand_chain, load_run
from pretrain.plan.derive import Plan, make_plan
from pretrain.plan.resources import resources_of

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("recipe_table", ROOT / "configs" / "table.py")
assert _spec is not None
assert _spec.loader is not None
recipe_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe_table)

# Published top-1/5 in per cent and multiply-adds in units of 1e9 ("FLOPs" there), by config; others
# publish none for the weights they make.
PUBLISHED = {
    "swin_t_1k": ("81.2 / 95.5", 4.5), "swin_s_1k": ("83.2 / 96.2", 8.7),
    "swin_b_1k": ("83.5 / 96.5", 15.4), "swin_b_1k_to_384": ("84.5 / 97.0", 47.1),
    "swin_t_c24_1k": ("81.6 / 95.7", 5.9),
    "swin_t_22k_to_1k_224": ("80.9 / 96.0", 4.5), "swin_s_22k_to_1k_224": ("83.2 / 97.0", 8.7),
    "swin_b_22k_to_1k_224": ("85.2 / 97.5", 15.4), "swin_b_22k_to_1k_384": ("86.4 / 98.0", 47.1),
    "swin_l_22k_to_1k_224": ("86.3 / 97.9", 34.5), "swin_l_22k_to_1k_384": ("87.3 / 98.2", 103.9),
    "swinv2_t_1k_window8": ("81.8 / 95.9", 5.9), "swinv2_t_1k_window16": ("82.8 / 96.2", 6.6),
    "swinv2_s_1k_window8": ("83.7 / 96.6", 11.5), "swinv2_s_1k_window16": ("84.1 / 96.8", 12.6),
    "swinv2_b_1k_window8": ("84.2 / 96.9", 20.3), "swinv2_b_1k_window16": ("84.6 / 97.0", 21.8),
    "swinv2_b_22k_to_1k_256": ("86.2 / 97.9", 21.8),
    "swinv2_b_22k_to_1k_384": ("87.1 / 98.2", 54.7),
    "swinv2_l_22k_to_1k_256": ("86.9 / 98.0", 47.5),
    "swinv2_l_22k_to_1k_384": ("87.6 / 98.3", 115.4),
    "swin_mlp_t_c6_1k": ("79.7 / 94.9", 4.0), "swin_mlp_t_c12_1k": ("79.6 / 94.7", 4.0),
    "swin_mlp_t_c24_1k": ("79.4 / 94.6", 4.0), "swin_mlp_b_1k": ("81.3 / 95.3", 10.4),
}  # fmt: skip


def header(name: str) -> dict[str, str]:
    return recipe_table.read_header(ROOT / "configs" / f"{name}.yaml")


def test_the_table_is_not_stale():
    readme = (ROOT / "README.md").read_text()
    between = readme.partition(recipe_table.BEGIN)[2].partition(recipe_table.END)[0]
    assert between == recipe_table.table(), "run python configs/table.py"
    assert between.count("\n") == 2 + len(config_names())


@pytest.mark.parametrize("name", config_names())
def test_every_header_is_complete_and_its_command_runs_this_config(name):
    command = shlex.split(header(name)["Command"])
    assert command[:2] == ["python", "launch/slurm.py"]
    assert (ROOT / command[1]).is_file()
    named = [value for flag, value in pairwise(command) if flag == "--config"]
    assert name in [*named, *expand_chain(named)]


def plan_of(name: str) -> Plan:
    config = load_run(name, cluster="slurm")
    return make_plan(config, None, resources_of(config.cluster, 0), free_disk_bytes=0)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_figures(name):
    accuracy, giga_macs = PUBLISHED[name]
    assert header(name)["Published"] == f"{accuracy} top-1/5 %, {giga_macs} GMAC"
    assert round(plan_of(name).forward_macs_per_image / 1e9, 1) == giga_macs


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("swin")])
def test_the_cost_in_the_header_is_the_plans(name):
    plan = plan_of(name)
    found = re.search(r"([\d.]+) EFLOP", header(name)["Hardware"])
    assert found is not None
    assert found[1] == f"{plan.cost.exaflop:.3g}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# Published: none\n", "", "got Source, Command, Hardware, Status"),
        ("# Hardware:  1 GPU\n", "# Hardware:\n", "got Source, Command, Published, Status"),
        ("unverified", "verified", "Status: expected 'unverified' or 'verified COMMIT'"),
        ("unverified", "works for me", "got 'works for me'"),
        ("# Source", "seed: 1\n# Source", "got none"),
    ],
)
def test_incomplete_headers_are_refused(tmp_path, old, new, said):
    text = (
        "# A recipe.\n# Source:    here\n# Command:   python x\n# Published: none\n"
        "# Hardware:  1 GPU\n# Status:    unverified\nseed: 1\n"
    )
    path = tmp_path / "some.yaml"
    path.write_text(text)
    assert recipe_table.read_header(path)["Hardware"] == "1 GPU"
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="header") as refusal:
        recipe_table.read_header(path)
    assert said in str(refusal.value)


def test_the_script_writes_between_its_lines_only(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{recipe_table.BEGIN}old\n{recipe_table.END}after\n")
    monkeypatch.setattr(recipe_table, "README", readme)
    assert recipe_table.main() == 0
    assert readme.read_text() == (
        f"before\n{recipe_table.BEGIN}{recipe_table.table()}{recipe_table.END}after\n"
    )
    readme.write_text("no lines\n")
    assert recipe_table.main() == 2
    assert readme.read_text() == "no lines\n"
