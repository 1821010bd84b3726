import json
from pathlib import Path

from launch.look_after.alerts import Alerts


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_tells_what_is_new_once_and_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, json.dumps({"event": "checkpoint_failed", "step": 1, "reason": "history"}) + "\n")
    alerts = Alerts(path)
    assert alerts.news() == []
    append(path, json.dumps({"event": "started", "step": 0}) + "\nnot json\n[]\n")
    line = json.dumps({"event": "checkpoint_failed", "step": 8, "reason": "two\nlines"})
    append(path, line[:20])
    assert alerts.news() == []
    append(path, line[20:] + "\n")
    assert alerts.news() == ["no checkpoint of step 8, training goes on: two lines"]
    assert alerts.news() == []


def test_a_run_without_events_has_none(tmp_path):
    alerts = Alerts(tmp_path / "events.jsonl")
    assert alerts.news() == []
    append(tmp_path / "events.jsonl", '{"event": "checkpoint_refused", "reason": "rot"}\n')
    assert alerts.news() == ["a checkpoint was refused: rot"]
