"""The dashboards as they would be sent."""

import json

import pytest

from pretrain.metrics.__main__ import main
from pretrain.metrics.mirror.dashboard import AUGMENTATION, SECTIONS, STEPS


@pytest.fixture
def without_network(monkeypatch):
    """A server that nobody serves, and no credentials."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def dry_run(capsys, *arguments):
    assert main(["dashboard", "--project", "shapes", "--dry-run", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def panels_of(section):
    return [(panel["viewType"], panel["config"]) for panel in section["panels"]]


def drawn(panels):
    return [config["metrics"] for kind, config in panels if kind == "Run History Line Plot"]


def expected(section):
    return [list(panel.keys) for panel in section.panels if panel.kind != "images"]


def test_the_workspace_holds_every_section_of_the_table(capsys, without_network):
    workspace = dry_run(capsys)["workspace"]["section"]
    assert workspace["settings"]["xAxis"] == STEPS
    sections = workspace["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section.name for section in SECTIONS]
    for section, planned in zip(sections, SECTIONS, strict=True):
        assert drawn(panels_of(section)) == expected(planned)
        assert {config.get("xAxis", STEPS) for _, config in panels_of(section)} == {STEPS}
        shape = section["flowConfig"]
        assert shape["columnsPerPage"] * shape["rowsPerPage"] >= len(planned.panels)
    (throughput,) = [section for section in sections if section["name"] == "Throughput"]
    areas = [config for _, config in panels_of(throughput) if config["plotType"] != "line"]
    assert [config["plotType"] for config in areas] == ["stacked-area"]
    pictures = [
        config["mediaKeys"]
        for section in sections
        for kind, config in panels_of(section)
        if kind == "Media Browser"
    ]
    assert pictures == [[AUGMENTATION]]


def test_the_report_holds_the_same_panels_and_compares_the_runs(capsys, without_network):
    blocks = dry_run(capsys)["report"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    panels = [panels_of(grid["panelBankSectionConfig"]) for grid in grids]
    assert [drawn(one) for one in panels[:-1]] == [expected(section) for section in SECTIONS]
    assert [kind for kind, _ in panels[-1]] == ["Run Comparer"]
    for grid in grids:
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        assert len({(place["x"], place["y"]) for place in places}) == len(places)
        assert all(place["x"] + place["w"] <= 24 for place in places)


def test_evaluations_may_be_drawn_over_the_images_seen(capsys, without_network):
    workspace = dry_run(capsys, "--evaluations-over", "samples")["workspace"]
    axes = {
        name: config["xAxis"]
        for section in workspace["section"]["panelBankConfig"]["sections"]
        for _, config in panels_of(section)
        for name in config.get("metrics", [])
    }
    assert {axis for name, axis in axes.items() if name.startswith("eval/")} == {"samples"}
    assert {axis for name, axis in axes.items() if not name.startswith("eval/")} == {STEPS}
