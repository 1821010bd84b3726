"""Alarming events reach whoever watches, once each, whatever else the file holds."""

import json

from launch.look_after.alerts import Alerts


def append(path, *events):
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def test_only_new_alarming_events_are_told(tmp_path):
    path = tmp_path / "events.jsonl"
    append(path, {"event": "alert", "about": "rewind", "text": "old"})
    alerts = Alerts(path)
    assert alerts.news() == []
    append(path, {"event": "started"}, {"event": "alert", "about": "bad_samples", "text": "a\nb"})
    with path.open("a") as file:
        file.write('not json\n{"event": "alert", "about": "rewi')
    assert alerts.news() == ["a b"]
    assert alerts.news() == []
    with path.open("a") as file:
        file.write('nd", "text": "back"}\n')
    assert alerts.news() == ["back"]


def test_how_an_attempt_ended_is_left_to_the_ledger(tmp_path):
    alerts = Alerts(tmp_path / "events.jsonl")
    assert alerts.news() == []
    append(tmp_path / "events.jsonl", {"event": "alert", "about": "failure", "text": "died"})
    assert alerts.news() == []
