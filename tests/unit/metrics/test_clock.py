"""Time is charged to the right phase, and the forecast hears of every step."""

import pytest

from pretrain.metrics.clock import Clock
from pretrain.metrics.forecast import Evaluated, Forecast


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


def make(now, on_phase=lambda phase: None, **arguments):
    forecast = Forecast(
        total_steps=100, global_batch=64, evaluated=[Evaluated(10, 640)], save_every_steps=25
    )
    return Clock(global_batch=64, forecast=forecast, now=now, on_phase=on_phase, **arguments)


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


def test_the_rate_of_a_device_is_its_share_and_is_held_against_its_peak(now):
    clock = make(now, ranks=4, images_per_second_at_peak=10.0)
    step(clock, now)
    values = clock.read()
    assert values["perf/images_per_second_per_device"] == pytest.approx(64 / 4 / 4)
    assert values["perf/flop_utilisation_fraction"] == pytest.approx(64 / 4 / 4 / 10)
    unknown = make(now)
    step(unknown, now)
    assert "perf/flop_utilisation_fraction" not in unknown.read()


SPLIT = ("data_wait", "communication", "compute", "evaluation", "save")


@pytest.mark.parametrize(
    ("waited", "expected"), [(0.5, (2, 1.0, 9)), (None, (2, 0, 10)), (1e9, (2, 10, 0))]
)
def test_five_parts_add_up_to_the_interval(now, waited, expected):
    clock = make(now)
    for _ in range(2):
        step(clock, now)
    with clock.phase("evaluation"):
        now.sleep(50)
    with clock.phase("save"):
        now.sleep(7)
    now.sleep(4)
    values = clock.read(waited)
    assert ("perf/communication_seconds" in values) == (waited is not None)
    parts = [values.get(f"perf/{part}_seconds", 0) for part in SPLIT]
    assert parts == pytest.approx([*expected, 50, 7])
    assert sum(parts) == pytest.approx(2 * 4 + 50 + 7 + 4)


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


def test_the_forecast_hears_of_steps_evaluations_and_saves(now):
    clock = make(now)
    assert clock.eta_seconds(0) is None
    for _ in range(9):
        step(clock, now)
        now.sleep(1)  # outside every phase: of the next step
    with clock.phase("evaluation", images=640):
        now.sleep(30)
    with clock.phase("save"):
        now.sleep(5)
    step(clock, now)
    # The evaluation after step 10 is yet to come.
    assert clock.eta_seconds(10) == pytest.approx(90 * 5 + 10 * 30 + 4 * 5)


def test_the_time_left_shrinks_during_an_evaluation_but_not_below_what_follows(now):
    clock = make(now)
    for _ in range(10):
        step(clock, now)
    before = clock.eta_seconds(10)
    with clock.phase("evaluation", images=640):
        now.sleep(10)
        assert clock.eta_seconds(10) == pytest.approx(before - 10)
        now.sleep(1000)
        # Reckoned from the training rate: 640 images at a third of 4 s for 64.
        assert clock.eta_seconds(10) == pytest.approx(before - 640 / 64 * 4 / 3)


def test_every_phase_is_announced_and_so_is_its_end(now):
    seen = []
    clock = make(now, seen.append)
    with clock.phase("step"):
        for _ in clock.waiting([1]):
            pass
    assert seen == ["step", "data", "step", "data", "step", None]
