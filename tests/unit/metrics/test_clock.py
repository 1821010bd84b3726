"""Time is charged to the right phase, and the end is foretold from what was measured."""

import json

import pytest

from pretrain.metrics.clock import Clock


class FakeTime:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def now():
    return FakeTime()


def make(now, total_steps=100, evaluate_every_steps=10, save_every_steps=25):
    return Clock(
        global_batch=64,
        total_steps=total_steps,
        evaluate_every_steps=evaluate_every_steps,
        save_every_steps=save_every_steps,
        now=now,
    )


def step(clock, now, data=1.0, compute=3.0):
    def source():
        now.sleep(data)
        yield "batch"

    with clock.phase("step"):
        assert list(clock.waiting(source())) == ["batch"]
        now.sleep(compute)


def test_waiting_inside_a_step_counts_as_data(now):
    clock = make(now)
    for _ in range(5):
        step(clock, now)
    values = clock.read()
    assert values["perf/data_wait_fraction"] == pytest.approx(1 / 4)
    assert values["perf/step_seconds"] == pytest.approx(4)
    assert values["perf/images_per_second"] == pytest.approx(64 / 4)


def test_evaluation_and_saving_do_not_slow_the_training_rate(now):
    clock = make(now)
    step(clock, now)
    with clock.phase("evaluation"):
        now.sleep(50)
    with clock.phase("save"):
        now.sleep(7)
    now.sleep(4)  # outside every phase: counts as training
    values = clock.read()
    assert values["perf/step_seconds"] == pytest.approx(8)
    assert values["perf/evaluation_seconds"] == 50
    assert values["perf/save_seconds"] == 7


def test_each_interval_starts_anew(now):
    clock = make(now)
    step(clock, now, data=0, compute=2)
    clock.read()
    step(clock, now, data=0, compute=10)
    assert clock.read()["perf/step_seconds"] == pytest.approx(10)
    assert clock.read() == {
        "perf/evaluation_seconds": 0,
        "perf/save_seconds": 0,
        "perf/save_wait_seconds": 0,
        "perf/save_write_seconds": 0,
    }


def test_saves_that_ended_are_counted_once(now):
    clock = make(now)
    clock.count_save(write_seconds=5, wait_seconds=0)
    clock.count_save(write_seconds=7, wait_seconds=2)
    first, second = clock.read(), clock.read()
    assert (first["perf/save_write_seconds"], first["perf/save_wait_seconds"]) == (12, 2)
    assert (second["perf/save_write_seconds"], second["perf/save_wait_seconds"]) == (0, 0)


def test_a_step_that_raises_is_no_step(now):
    clock = make(now)
    with pytest.raises(RuntimeError), clock.phase("step"):
        raise RuntimeError
    assert "perf/step_seconds" not in clock.read()


def test_the_end_counts_remaining_evaluations_and_saves(now):
    clock = make(now)
    assert clock.eta_seconds(0) is None
    for _ in range(10):
        step(clock, now)
    clock.read()
    assert clock.eta_seconds(10) == pytest.approx(90 * 4)
    with clock.phase("evaluation"):
        now.sleep(30)
    assert clock.eta_seconds(10) == pytest.approx(90 * 4 + 9 * 30)
    with clock.phase("save"):
        now.sleep(5)
    assert clock.eta_seconds(10) == pytest.approx(90 * 4 + 9 * 30 + 4 * 5)
    assert clock.eta_seconds(100) == 0


@pytest.mark.parametrize(
    ("total", "every", "done", "left"), [(95, 10, 0, 10), (95, 10, 90, 1), (95, 10, 95, 0)]
)
def test_the_last_step_is_an_evaluation_too(now, total, every, done, left):
    clock = make(now, total_steps=total, evaluate_every_steps=every)
    step(clock, now, data=0, compute=0)
    now.sleep(1)
    clock.read()
    without = clock.eta_seconds(done)
    with clock.phase("evaluation"):
        now.sleep(1000)
    assert clock.eta_seconds(done) - without == pytest.approx(1000 * left)


def test_without_evaluation_there_is_none_to_wait_for(now):
    clock = make(now, evaluate_every_steps=None)
    step(clock, now)
    clock.read()
    assert clock.eta_seconds(0) == pytest.approx(400)


def test_the_estimate_survives_a_resume_and_then_follows_the_new_machine(now):
    clock = make(now)
    step(clock, now)
    with clock.phase("evaluation"):
        now.sleep(30)
    clock.read()
    resumed = make(now)
    resumed.load_state(json.loads(json.dumps(clock.state())))
    assert resumed.eta_seconds(50) == clock.eta_seconds(50) == pytest.approx(50 * 4 + 5 * 30)
    for _ in range(60):
        step(resumed, now, data=0, compute=1)
        resumed.read()
    assert resumed.eta_seconds(50) == pytest.approx(50 * 1 + 5 * 30, rel=0.02)


def test_every_phase_is_announced_and_so_is_its_end(now):
    seen = []
    clock = Clock(
        global_batch=8,
        total_steps=10,
        evaluate_every_steps=None,
        save_every_steps=5,
        now=now,
        on_phase=seen.append,
    )
    with clock.phase("step"):
        for _ in clock.waiting([1]):
            pass
    assert seen == ["step", "data", "step", "data", "step", None]
