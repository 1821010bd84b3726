"""Every recorded number is declared once."""

import re
import subprocess
import sys

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
