"""Every recorded number is declared once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.metrics.console import COUNTED, LABELS
from pretrain.metrics.names import METRICS, check_declared


def test_names_carry_their_unit():
    endings = {
        "s": "_seconds",
        "GiB": "_gib",
        "images/s": ("images_per_second", "images_per_second_per_device"),
    }
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(train|data|perf|memory|eval|run)/[a-z0-9_]+", name)
        assert metric.reduction
        assert metric.meaning.endswith(".")
        if metric.unit in endings:
            assert name.endswith(endings[metric.unit])
        assert name.endswith("_fraction") <= (metric.unit == "")


def test_an_undeclared_name_is_refused_by_name():
    check_declared(METRICS)
    with pytest.raises(ValueError, match="train/lost"):
        check_declared(["train/loss", "train/lost"])


def test_the_console_shows_declared_names_only():
    check_declared([*LABELS, *COUNTED])


def test_names_need_no_torch():
    code = "import sys, pretrain.metrics.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def rows():
    """The table in docs/watching.md; of stages the first stands for all."""
    shown = {name: metric for name, metric in METRICS.items() if not re.search("_[234]$", name)}
    return [
        f"| `{name}`{' to `_4`' if name.endswith('_stage_1') else ''} | {metric.unit} "
        f"| {metric.reduction} | {metric.meaning} |"
        for name, metric in shown.items()
    ]


def test_the_documentation_lists_every_metric_as_it_is_declared():
    text = (Path(__file__).parents[3] / "docs" / "watching.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(?:train|data|perf|memory|eval|run)/.*$", text, re.MULTILINE)
    assert listed == rows()
