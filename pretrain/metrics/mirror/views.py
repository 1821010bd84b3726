"""The dashboards in the models of wandb-workspaces: one workspace and one report of a project.

Nothing here reaches for the network. The table of what is shown is `mirror.dashboard`.
"""

import json
from math import ceil
from typing import Any

import wandb_workspaces.reports.v2.interface as reports
import wandb_workspaces.workspaces as workspaces

from pretrain.metrics.mirror.dashboard import SECTIONS, STEPS, Axis, Panel, Section
from pretrain.metrics.names import METRICS

TITLE = "Pre-training"
"""Name of the workspace and of the report."""
DESCRIPTION = "Built by python -m pretrain.metrics dashboard; run it again to renew it."
"""Of the report; by it and the title it is found again."""
COLUMNS = 3
PANEL_WIDTH, PANEL_HEIGHT = 8, 6
"""In cells of a report, which is 24 wide."""
SUMMARY_COLUMNS = (
    "summary:global_step",
    "summary:train/loss",
    "summary:eval/top1_fraction",
    "summary:eval/ema_top1_fraction",
    "summary:perf/images_per_second",
    "summary:run/attempt",
)


def workspace(entity: str, project: str, evaluation_axis: Axis) -> workspaces.Workspace:
    """The workspace: a section of panels for every section of the table.

    Args:
        entity: user or team.
        project: whose runs it shows.
        evaluation_axis: horizontal axis of the panels of evaluations.
    """
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            workspaces.Section(
                name=section.name,
                panels=_panels(section, evaluation_axis),
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(
                    columns=COLUMNS, rows=ceil(len(section.panels) / COLUMNS)
                ),
                panel_settings=workspaces.SectionPanelSettings(x_axis=STEPS),
            )
            for section in SECTIONS
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEPS, point_visualization_method="bucketing"),
        runset_settings=workspaces.RunsetSettings(pinned_columns=list(SUMMARY_COLUMNS)),
    )


def report(entity: str, project: str, evaluation_axis: Axis) -> reports.Report:
    """The report: the same panels with the meaning of what they draw, and a comparison of runs.

    The arguments are those of `workspace`.
    """
    blocks: list[Any] = [reports.TableOfContents()]
    for section in SECTIONS:
        blocks += [
            reports.H2(text=section.name),
            reports.P(text=section.question),
            _grid(_panels(section, evaluation_axis)),
            reports.MarkdownBlock(text=_meanings(section)),
        ]
    comparer = reports.RunComparer(
        diff_only="split", layout=reports.Layout(w=COLUMNS * PANEL_WIDTH, h=2 * PANEL_HEIGHT)
    )
    blocks += [
        reports.H2(text="Runs"),
        reports.P(text="In what do they differ?"),
        _grid([comparer]),
    ]
    return reports.Report(
        entity=entity,
        project=project,
        title=TITLE,
        description=DESCRIPTION,
        width="fluid",
        blocks=blocks,
    )


def as_json(entity: str, project: str, evaluation_axis: Axis) -> str:
    """Both as the JSON that would be sent, ``{"workspace": …, "report": …}``."""
    made = {
        "workspace": workspace(entity, project, evaluation_axis),
        "report": report(entity, project, evaluation_axis),
    }
    # Private, and the only way to their specifications: hence the narrow range in pyproject.toml.
    specifications = {
        name: view._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, view in made.items()
    }
    return json.dumps(specifications, indent=1)


def _panels(section: Section, evaluation_axis: Axis) -> list[Any]:
    made = [_panel(panel, evaluation_axis) for panel in section.panels]
    for number, panel in enumerate(made):
        row, column = divmod(number, COLUMNS)
        panel.layout = reports.Layout(
            x=column * PANEL_WIDTH, y=row * PANEL_HEIGHT, w=PANEL_WIDTH, h=PANEL_HEIGHT
        )
    return made


def _panel(panel: Panel, evaluation_axis: Axis) -> Any:
    if panel.kind == "images":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    units = {METRICS[name].unit for name in panel.keys}
    return reports.LinePlot(
        title=panel.title,
        x=evaluation_axis if panel.over == "evaluation" else STEPS,
        y=list(panel.keys),
        title_y=" or ".join(sorted(units - {""})) or None,
        log_y=panel.logarithmic or None,
        plot_type="stacked-area" if panel.kind == "stacked" else "line",
    )


def _grid(panels: list[Any]) -> reports.PanelGrid:
    # Runs of the report's own project: naming it would ask the server whether it is there.
    return reports.PanelGrid(runsets=[reports.Runset(name="Runs")], panels=panels)


def _meanings(section: Section) -> str:
    metrics = [key for panel in section.panels for key in panel.keys if key in METRICS]
    return "\n".join(
        f"* `{name}`: {METRICS[name].meaning} ({METRICS[name].reduction})" for name in metrics
    )
