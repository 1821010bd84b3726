"""Every panel draws what is logged, and what is logged is drawn, or it says why not."""

import subprocess
import sys

from pretrain.metrics.mirror.dashboard import AXES, NOT_SHOWN, SECTIONS, shown_metrics
from pretrain.metrics.mirror.files import local_files, read_file
from pretrain.metrics.names import METRICS
from pretrain.metrics.recorder import Recorder


def test_every_declared_metric_is_drawn_once_or_left_out_for_a_reason():
    shown = shown_metrics()
    assert len(shown) == len(set(shown))
    assert set(shown) | NOT_SHOWN.keys() == METRICS.keys()
    assert not set(shown) & NOT_SHOWN.keys()
    assert all(NOT_SHOWN.values())


def test_areas_on_top_of_each_other_are_parts_of_one_whole():
    panels = [panel for section in SECTIONS for panel in section.panels]
    (stacked,) = [panel for panel in panels if panel.kind == "stacked"]
    assert {METRICS[name].unit for name in stacked.keys} == {"s"}
    assert not stacked.logarithmic


def test_what_a_panel_draws_is_found_under_that_name_in_the_file_of_wandb(run, make_config):
    with Recorder(
        run,
        make_config("offline"),
        rank=0,
        attempt=1,
        resume_step=0,
        total_steps=100,
        steps_per_epoch=50,
    ) as recorder:
        recorder.write(10, {name: 1.0 for name in METRICS if not name.startswith("eval/")})
        recorder.write(10, {name: 0.5 for name in METRICS if name.startswith("eval/")})
    (path,) = local_files(run.wandb_dir)
    rows = read_file(path).rows
    for section in SECTIONS:
        for panel in section.panels:
            if panel.kind != "images":
                for name in panel.keys:
                    assert any(name in row and set(AXES) <= row.keys() for row in rows), (
                        section.name,
                        name,
                    )


def test_the_table_needs_no_wandb():
    code = (
        "import sys, pretrain.metrics.mirror.dashboard\n"
        "sys.exit(bool({'wandb', 'wandb_workspaces', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
