"""The README's recipe table is what the configs' headers say, and the headers are complete."""

import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from pretrain.config.load import config_names, expand_chain, load_run
from pretrain.plan.derive import make_plan
from pretrain.plan.resources import resources_of

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("recipe_table", ROOT / "configs" / "table.py")
assert _spec is not None
assert _spec.loader is not None
recipe_table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe_table)

# Published top-1/5 in per cent, by config; others publish none for the weights they make.
PUBLISHED = {
    "swin_t_1k": "81.2 / 95.5", "swin_s_1k": "83.2 / 96.2", "swin_b_1k": "83.5 / 96.5",
    "swin_b_1k_to_384": "84.5 / 97.0",
    "swin_t_22k_to_1k_224": "80.9 / 96.0", "swin_s_22k_to_1k_224": "83.2 / 97.0",
    "swin_b_22k_to_1k_224": "85.2 / 97.5", "swin_b_22k_to_1k_384": "86.4 / 98.0",
    "swinv2_b_22k_to_1k_256": "86.2 / 97.9", "swinv2_b_22k_to_1k_384": "87.1 / 98.2",
    "swinv2_l_22k_to_1k_256": "86.9 / 98.0", "swinv2_l_22k_to_1k_384": "87.6 / 98.3",
    "swin_l_22k_to_1k_224": "86.3 / 97.9", "swin_l_22k_to_1k_384": "87.3 / 98.2",
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


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_figures(name):
    assert header(name)["Published"] == f"{PUBLISHED[name]} top-1/5 %"


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("swin")])
def test_the_cost_in_the_header_is_the_plans(name):
    config = load_run(name, cluster="slurm")
    resources = resources_of(config.cluster, 0)
    plan = make_plan(config, None, resources, free_disk_bytes=0)
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
