"""The end of a run is foretold well from early on, over many simulated runs."""

import json
import random

import pytest

from pretrain.metrics.forecast import Evaluated, Forecast

IMAGE_SHARE = 1 / 3
BATCH = 64


def forecast(total_steps=100, evaluated=(), save_every_steps=1000, **fields):
    return Forecast(
        total_steps=total_steps,
        global_batch=BATCH,
        evaluated=evaluated,
        save_every_steps=save_every_steps,
        **fields,
    )


def stepped(count, seconds=4.0, **fields):
    made = forecast(**fields)
    for _ in range(count):
        made.add_step(seconds)
    return made


def test_nothing_is_known_before_the_second_step():
    made = forecast()
    assert made.remaining_seconds(0) is None
    made.add_step(400.0)
    assert made.remaining_seconds(1) is None
    made.add_step(4.0)
    assert made.remaining_seconds(2) == pytest.approx(98 * 4)


def test_an_evaluation_is_reckoned_from_the_training_rate_until_it_is_measured():
    made = stepped(9, evaluated=[Evaluated(10, 3 * BATCH)])
    assert made.remaining_seconds(9) == pytest.approx(91 * 4 + 10 * 4)
    made.add_step(4.0)
    assert made.remaining_seconds(10) == pytest.approx(90 * 4 + 10 * 4)
    made.add_evaluation(3 * BATCH, 7.0)
    assert made.remaining_seconds(10) == pytest.approx(90 * 4 + 9 * 7)


def test_each_split_counts_by_its_own_period_and_size():
    made = stepped(5, total_steps=42, evaluated=[Evaluated(10, BATCH), Evaluated(12, 2 * BATCH)])
    made.add_evaluation(BATCH, 10.0)
    made.add_evaluation(2 * BATCH, 21.0)
    made.add_evaluation(3 * BATCH, 31.0)
    # After 10, 20, 30, 40 the one, after 12, 24, 36 the other, after 42 both.
    assert made.remaining_seconds(5) == pytest.approx(37 * 4 + 4 * 10 + 3 * 21 + 31)


def test_an_evaluation_of_another_size_costs_what_its_images_do():
    made = stepped(5, evaluated=[Evaluated(50, 8 * BATCH)])
    made.add_evaluation(2 * BATCH, 10.0)
    assert made.remaining_seconds(5) == pytest.approx(95 * 4 + 2 * 40)


def test_saves_count_and_the_last_is_waited_for_to_the_end():
    made = stepped(30, save_every_steps=25, evaluated=[Evaluated(40, 0)], saves_evaluated=True)
    made.add_save(2.0)
    made.add_write(9.0)
    # After 40, 50, 75, 80; then the last one.
    assert made.remaining_seconds(30) == pytest.approx(70 * 4 + 4 * 2 + 9)


def test_a_save_that_was_never_made_counts_only_where_it_is_waited_for():
    bytes_of_one = 10**9
    made = stepped(5, save_every_steps=25, save_bytes=bytes_of_one)
    assert made.remaining_seconds(5) == pytest.approx(95 * 4 + 4 * 2)
    made = stepped(5, save_every_steps=25, save_bytes=bytes_of_one, saves_waited_for=False)
    assert made.remaining_seconds(5) == pytest.approx(95 * 4 + 2)


def test_nothing_remains_after_the_last_save():
    made = stepped(100, evaluated=[Evaluated(10, BATCH)], save_every_steps=25)
    made.add_evaluation(BATCH, 3.0)
    assert made.remaining_seconds(100, within="save", elapsed_seconds=1.0) == 0.0
    made.add_save(2.0)
    assert made.remaining_seconds(100) == 0.0


def test_what_is_under_way_shrinks_the_time_left():
    made = stepped(25, save_every_steps=25)
    made.add_save(6.0)
    made.add_step(4.0)
    left = made.remaining_seconds(50)
    assert made.remaining_seconds(50, within="save", elapsed_seconds=4.0) == pytest.approx(left - 4)
    assert made.remaining_seconds(50, within="save", elapsed_seconds=9.0) == pytest.approx(left - 6)


def test_one_stall_says_nothing_of_the_next():
    made = stepped(20)
    made.add_step(400.0)
    assert made.step_seconds() == pytest.approx(4.0)
    for _ in range(5):
        made.add_step(400.0)
    assert made.step_seconds() > 50


def test_a_resumed_run_knows_its_end_at_once_and_follows_the_new_machines():
    evaluated = [Evaluated(10, BATCH)]
    first = stepped(20, evaluated=evaluated)
    first.add_evaluation(BATCH, 3.0)
    first.add_save(1.0)
    resumed = forecast(evaluated=evaluated)
    resumed.load_state(json.loads(json.dumps(first.state())))
    assert resumed.remaining_seconds(20) == pytest.approx(80 * 4 + 8 * 3 + 1)
    resumed.add_step(50.0)
    assert resumed.remaining_seconds(21) == pytest.approx(79 * 4 + 8 * 3 + 1)
    resumed.add_step(1.0)
    # Evaluation scales with the machines, a save does not.
    assert resumed.remaining_seconds(22) == pytest.approx(78 * 1 + 8 * 3 / 4 + 1)


def test_a_state_before_any_measurement_says_nothing():
    resumed = forecast(evaluated=[Evaluated(10, BATCH)])
    resumed.load_state(json.loads(json.dumps(forecast().state())))
    assert resumed.remaining_seconds(20) is None
    resumed.load_state({})
    assert resumed.remaining_seconds(20) is None


def simulate(seed, case):
    """Errors of the time left, relative to what was left, from 5 % to 90 % of a run's steps."""
    draw = random.Random(seed)
    total, first = case["total"], case.get("first", 0)
    # What evaluation takes of the share that is reckoned with: other batches, other decoding.
    evaluated, skill = case.get("evaluated", ()), draw.uniform(0.8, 1.25)
    made = forecast(total, evaluated, save_every_steps=case.get("save_every", 500))
    if "state" in case:
        made.load_state(case["state"])
    images_at = {}
    for every, images in evaluated:
        for step in {*range(every, total + 1, every), total}:
            images_at[step] = images_at.get(step, 0) + images
    said, now = [], 0.0
    looks = {first + -(-(total - first) * percent // 100) for percent in range(5, 91)}
    for step in range(first + 1, total + 1):
        number, part = step - first, (step - first) / (total - first)
        seconds = draw.gauss(1.0, case.get("noise", 0.1))
        factor = case["changed"] if part > case.get("change_at", 1.0) else 1.0
        seconds *= factor * (case.get("ramp", 1.0) if number <= 10 else 1.0)
        seconds += case.get("first_seconds", 20.0) if number == 1 else 0.0
        if draw.random() < case.get("stall_share", 0.0):
            seconds *= 10
        seconds += case.get("pause", 0.0) if number == round(0.04 * (total - first)) else 0.0
        made.add_step(max(0.2, seconds))
        now += max(0.2, seconds)
        if step in images_at:
            price = images_at[step] * IMAGE_SHARE / BATCH * skill * factor
            made.add_evaluation(images_at[step], price * (cost := draw.gauss(1.0, 0.05)))
            now += price * cost
        if step % case.get("save_every", 500) == 0 or step == total:
            made.add_save(case.get("save_seconds", 0.1))
            now += case.get("save_seconds", 0.1)
        if step in looks:
            said.append((now, made.remaining_seconds(step)))
    return [abs(left - (now - at)) / (now - at) for at, left in said]


EPOCH = 100
SCENARIOS = {
    "steady": {"total": 3000, "evaluated": [Evaluated(EPOCH, 50 * BATCH)]},
    "slow first step": {"total": 1000, "first_seconds": 300.0, "ramp": 1.5},
    "evaluation is 5 % of an epoch": {
        "total": 2000,
        "evaluated": [Evaluated(EPOCH, 15 * BATCH)],
    },
    "evaluation is 30 % of an epoch": {
        "total": 2000,
        "evaluated": [Evaluated(EPOCH, 90 * BATCH)],
    },
    "average and probe": {
        "total": 3000,
        "evaluated": [Evaluated(EPOCH, 2 * 20 * BATCH), Evaluated(5 * EPOCH, 2 * 100 * BATCH)],
    },
    "saves that are waited for": {"total": 3000, "save_every": 100, "save_seconds": 10.0},
    "noise": {"total": 3000, "noise": 0.3, "evaluated": [Evaluated(EPOCH, 30 * BATCH)]},
    "stalls now and then": {"total": 20000, "stall_share": 0.01},
    "one long pause": {"total": 1000, "pause": 100.0},
    "slower from 2 % on": {
        "total": 3000,
        "change_at": 0.02,
        "changed": 2.0,
        "evaluated": [Evaluated(EPOCH, 30 * BATCH)],
    },
    "resumed on twice as many ranks": {
        "total": 2000,
        "first": 700,
        "evaluated": [Evaluated(EPOCH, 30 * BATCH)],
        "state": {"step_seconds": 2.0, "evaluation_seconds": {str(30 * BATCH): 20.0}},
    },
    "resumed on as many": {
        "total": 2000,
        "first": 700,
        "evaluated": [Evaluated(EPOCH, 30 * BATCH)],
        "state": {"step_seconds": 1.0, "evaluation_seconds": {str(30 * BATCH): 10.0}},
    },
    "54 steps": {"total": 54, "noise": 0.03, "evaluated": [Evaluated(18, 6 * BATCH)]},
    "300,000 steps": {"total": 300_000, "evaluated": [Evaluated(1000, 100 * BATCH)]},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_from_a_twentieth_of_a_run_on_the_error_is_below_a_tenth(name):
    seeds = 1 if SCENARIOS[name]["total"] > 10_000 else 10
    worst = max(max(simulate(seed, SCENARIOS[name])) for seed in range(seeds))
    assert worst < 0.1
