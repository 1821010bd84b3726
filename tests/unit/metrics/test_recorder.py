"""The record over kills, rewinds and resumes."""

import json

import pytest

from pretrain.config.schema import EmaConfig
from pretrain.metrics import recorder as recorder_module
from pretrain.metrics.jsonl import read_lines
from pretrain.metrics.recorder import Recorder


@pytest.fixture
def record(run, make_config):
    """Open a recorder of an attempt."""

    def open_recorder(*, attempt=1, resume_step=0, rank=0, ema=None):
        return Recorder(
            run,
            make_config().model_copy(update={"ema": ema or EmaConfig()}),
            rank=rank,
            attempt=attempt,
            resume_step=resume_step,
            total_steps=100,
            steps_per_epoch=25,
        )

    return open_recorder


def loss(step):
    return {"train/loss": 10.0 / step}


def steps_of(run):
    return [line["step"] for line in read_lines(run.metrics_path)]


def test_a_record_is_a_line_with_step_time_and_attempt(run, record, monkeypatch):
    monkeypatch.setattr(recorder_module.time, "time", lambda: 1234.5678)
    with record(attempt=3) as recorder:
        recorder.write(10, {"train/loss": 2.5, "perf/step_seconds": float("nan")})
        assert read_lines(run.metrics_path) == [
            {
                "step": 10,
                "time": 1234.568,
                "attempt": 3,
                "train/loss": 2.5,
                "perf/step_seconds": None,
            }
        ]


def test_an_undeclared_name_is_refused_on_every_rank(record):
    for rank in (0, 1):
        with pytest.raises(ValueError, match="train/lost"):
            record(rank=rank).write(10, {"train/lost": 1.0})


def test_a_step_cannot_run_backwards(record):
    recorder = record(resume_step=20)
    with pytest.raises(ValueError, match="step 10"):
        recorder.write(10, loss(10))


def test_other_ranks_write_nothing(run, record, capsys):
    before = sorted(run.path.iterdir())
    with record(rank=1) as recorder:
        recorder.write(10, loss(10))
        recorder.event("started")
        recorder.progress(10, "training")
        recorder.sync()
    assert sorted(run.path.iterdir()) == before
    assert capsys.readouterr().out == ""


def test_a_resume_replays_steps_without_repeating_or_losing_any(run, record):
    with record() as recorder:
        for step in range(10, 60, 10):
            recorder.write(step, loss(step))
    with record(attempt=2, resume_step=20) as recorder:
        for step in range(30, 110, 10):
            recorder.write(step, loss(step))
    assert steps_of(run) == list(range(10, 110, 10))
    attempts = [line["attempt"] for line in read_lines(run.metrics_path)]
    assert attempts == [1] * 2 + [2] * 8
    cut = [line for line in read_lines(run.events_path) if line["event"] == "record_cut_back"]
    assert [(line["resume_step"], line["lines_to_come_again"]) for line in cut] == [(20, 3)]


def test_five_rewinds_leave_one_monotone_record(run, record):
    resume_step = 0
    for attempt in range(1, 6):
        recorder = record(attempt=attempt, resume_step=resume_step)
        for step in range(resume_step + 5, min(resume_step + 40, 101), 5):
            recorder.write(step, loss(step))
        with run.metrics_path.open("ab") as file:
            file.write(b'{"step": 99, "train/lo')  # killed in the middle of a line
        resume_step += 20
    with record(attempt=6, resume_step=resume_step):
        pass
    assert steps_of(run) == list(range(5, 101, 5))


def test_a_step_that_was_evaluated_before_the_restart_is_not_evaluated_twice(run, record):
    with record() as recorder:
        recorder.write(20, loss(20))
        recorder.write(20, {"eval/top1_fraction": 0.5})
    with record(attempt=2, resume_step=20) as recorder:
        recorder.write(20, {"eval/top1_fraction": 0.5})
        recorder.write(20, {"eval/top1_fraction": 0.5, "eval/loss": 1.0})
    lines = [
        {key: line[key] for key in line if "/" in key} for line in read_lines(run.metrics_path)
    ]
    assert lines == [loss(20), {"eval/top1_fraction": 0.5}, {"eval/loss": 1.0}]


def test_events_are_history_and_stay(run, record, capsys):
    with record() as recorder:
        recorder.event("started", ranks=2)
    run.events_path.write_bytes(run.events_path.read_bytes() + b'{"event": "torn')
    with record(attempt=2) as recorder:
        recorder.event("bad_sample", shard="a.tar", key="k\n1", reason=ValueError("no image"))
    events = read_lines(run.events_path)
    assert [(line["event"], line["attempt"]) for line in events] == [
        ("started", 1),
        ("bad_sample", 2),
    ]
    assert events[1]["key"] == "k\n1"
    assert events[1]["reason"] == "no image"
    assert all(line["time"] > 1e9 for line in events)
    assert capsys.readouterr().out == (
        "started: ranks 2\nbad sample: shard a.tar, key k 1, reason no image\n"
    )


def test_every_record_is_one_console_line(record, capsys):
    with record() as recorder:
        recorder.write(10, loss(10))
        recorder.eta_seconds = {20: 61.0}.get
        recorder.write(20, loss(20))
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "epoch   0.40  step  10/100  loss 1.0000",
        "epoch   0.80  step  20/100  loss 0.5000  eta 1:01",
    ]


def test_progress_says_where_the_run_stands(run, record):
    with record(attempt=2, resume_step=40) as recorder:
        assert run.read_progress()["state"] == "starting"
        assert run.read_progress()["last_checkpoint_step"] == 40
        recorder.eta_seconds = {50: 9.5}.get
        recorder.progress(40, "training")
        measured = {
            "train/accuracy_fraction": 0.5,
            "perf/images_per_second": 123.0,
            "perf/images_per_second_per_device": 61.5,
            "perf/data_wait_fraction": 0.25,
        }
        recorder.write(50, loss(50) | measured)
        recorder.progress(50, "evaluating", evaluated_fraction=0.25)
        assert run.read_progress()["evaluated_fraction"] == 0.25
        recorder.write(50, {"eval/top1_fraction": 0.75})
        recorder.progress(50, "saving", last_checkpoint_step=50)
        standing = run.read_progress()
        assert standing.pop("time") > 1e9
        assert standing == {
            "state": "saving",
            "step": 50,
            "total_steps": 100,
            "epoch": 2.0,
            "epochs": 4.0,
            "steps_per_epoch": 25,
            "images_per_second": 123.0,
            "images_per_second_per_device": 61.5,
            "data_wait_fraction": 0.25,
            "loss": 0.2,
            "accuracy_fraction": 0.5,
            "evaluated_fraction": None,
            "eta_seconds": 9.5,
            "eval_top1_fraction": 0.75,
            "probe_top1_fraction": None,
            "last_checkpoint_step": 50,
            "attempt": 2,
        }
        assert not run.is_done()
        recorder.progress(100, "done")
    assert run.is_done()
    assert run.read_progress()["eta_seconds"] == 0


def test_progress_is_throttled_but_news_is_not(run, record, monkeypatch):
    seconds = [1000.0]
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: seconds[0])
    with record() as recorder:
        recorder.progress(1, "training")
        recorder.progress(2, "training")
        assert run.read_progress()["step"] == 1
        recorder.progress(3, "saving")
        assert run.read_progress()["step"] == 3
        seconds[0] += 1.0
        recorder.progress(4, "saving")
        assert run.read_progress()["step"] == 4


def test_a_resumed_run_remembers_its_accuracy(run, record):
    with record() as recorder:
        recorder.write(20, {"eval/top1_fraction": 0.5})
        recorder.write(20, {"eval/probe_top1_fraction": 0.25})
        recorder.write(30, {"eval/top1_fraction": 0.6, "eval/probe_top1_fraction": 0.3})
    with record(attempt=2, resume_step=20):
        assert run.read_progress()["eval_top1_fraction"] == 0.5
        assert run.read_progress()["probe_top1_fraction"] == 0.25


def test_the_accuracy_is_that_of_the_weights_that_the_run_gives(run, record):
    with record(ema=EmaConfig(decay=0.9)) as recorder:
        recorder.write(20, {"eval/top1_fraction": 0.5, "eval/ema_top1_fraction": 0.75})
        recorder.write(20, {"eval/probe_top1_fraction": 0.2, "eval/probe_ema_top1_fraction": 0.3})
    assert run.read_progress()["eval_top1_fraction"] == 0.75
    assert run.read_progress()["probe_top1_fraction"] == 0.3


def test_a_loss_that_is_not_finite_leaves_progress_valid(run, record):
    with record() as recorder:
        recorder.write(10, {"train/loss": float("inf")})
        recorder.progress(10, "saving")
    assert json.loads(run.progress_path.read_text())["loss"] is None


def test_closing_twice_is_once(record):
    recorder = record()
    recorder.close()
    recorder.close()


def test_alerts_are_events_and_lines_and_come_once_over_attempts(run, record, capsys):
    def losing(recorder, *steps):
        for step in steps:
            recorder.write(step, {"train/skipped_steps": 1.0})

    with record() as recorder:
        losing(recorder, 10, 20)
        recorder.rewind(0)
        losing(recorder, 10, 20, 30)
    with record(attempt=2, resume_step=10) as recorder:
        losing(recorder, 20, 30, 40)
    alerts = [line for line in read_lines(run.events_path) if line["event"] == "alert"]
    assert [(line["about"], line["step"]) for line in alerts] == [("non_finite_steps", 10)]
    assert f"\nalert: {alerts[0]['text']}\n" in capsys.readouterr().out
