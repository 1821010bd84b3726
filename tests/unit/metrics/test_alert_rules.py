"""What deserves to be heard of is said, once, and not again after a restart."""

import pytest

from pretrain.metrics.alerts import QUIET_RECORDS, SLOW_RECORDS, Rules


def rules(records=(), events=()):
    return Rules(bad_fraction=0.01, data_wait_fraction=0.5, records=records, events=events)


def line(step, *, skipped=0, bad=0, wait=0.1, **more):
    return {
        "step": step,
        "train/skipped_steps": skipped,
        "data/bad_samples": bad,
        "data/samples_consumed": step * 100,
        "perf/data_wait_fraction": wait,
        **more,
    }


def said(found, lines):
    return [(alert.about, alert.step) for each in lines for alert in found.of_record(each)]


def test_a_sound_run_says_nothing():
    assert said(rules(), [line(step) for step in range(10, 1000, 10)]) == []


def test_steps_that_are_not_finite_are_said_once_per_episode():
    skipped = [0, 2, 3, 0, 1, *[0] * QUIET_RECORDS, 1, 0]
    found = rules()
    lines = [line(10 * n, skipped=count) for n, count in enumerate(skipped, 1)]
    assert said(found, lines) == [
        ("non_finite_steps", 20),
        ("non_finite_steps", 10 * (6 + QUIET_RECORDS)),
    ]
    (alert,) = rules().of_record(line(10, skipped=2))
    assert alert.text.startswith("step 10: 2 of the last 10 steps were not applied")


def test_fp16_may_lose_a_step_for_its_loss_scale_but_not_most():
    found = rules()
    scale = {"train/loss_scale": 1024.0}
    assert said(found, [line(10, skipped=4, **scale)]) == []
    assert said(found, [line(20, skipped=8, **scale)]) == [("non_finite_steps", 20)]


def test_bad_samples_are_counted_over_a_window():
    assert said(rules(), [line(10 * n, bad=9) for n in range(1, 50)]) == [], "0.9 %"
    found = rules()
    calm = [line(10 * n) for n in range(1, 11)]
    assert said(found, [*calm, line(110, bad=110), line(120, bad=15), line(130, bad=15)]) == [
        ("bad_samples", 120)
    ], "110 of 11,000 are 1 %, no more"


def test_slow_data_is_said_when_it_lasts():
    waits = [*[0.9] * (SLOW_RECORDS - 1), 0.2, *[0.9] * 20]
    lines = [line(10 * n, wait=wait) for n, wait in enumerate(waits, 1)]
    assert said(rules(), lines) == [("slow_data", 10 * 2 * SLOW_RECORDS)]


def test_numbers_that_are_not_there_or_not_finite_say_nothing():
    assert said(rules(), [{"step": 10, "eval/loss": 1.0}, line(20, wait=None, bad=None)]) == []


@pytest.mark.parametrize("resume_step", [0, 20, 50, 80, 100])
def test_a_restart_does_not_say_it_again(resume_step):
    """Wherever training goes on from: before the alert, at it, or long after."""
    lines = [line(10 * n, wait=0.9, skipped=1, bad=50) for n in range(1, 31)]
    before = rules()
    events = [
        {"event": "alert", "about": alert.about, "text": alert.text, "step": alert.step}
        for each in lines[:10]
        for alert in before.of_record(each)
    ]
    assert len(events) == 3
    kept = [each for each in lines if each["step"] <= resume_step]
    after = rules(kept, events)
    assert said(after, [each for each in lines if each["step"] > resume_step]) == []


def test_a_checkpoint_that_fails_is_said_until_one_is_saved():
    failed = {"step": 10, "reason": "no  space\nleft"}
    found = rules()
    (alert,) = found.of_event("checkpoint_failed", failed)
    assert alert.text == "no checkpoint of step 10, training goes on: no space left"
    assert (alert.about, alert.step) == ("checkpoint_failed", 10)
    assert found.of_event("checkpoint_failed", {"step": 20, "reason": "the same"}) == []
    again = rules(events=[{"event": "checkpoint_failed", **failed}])
    assert again.of_event("checkpoint_failed", {"step": 20, "reason": "the same"}) == []
    again.of_event("checkpoint_saved", {"step": 30})
    assert len(again.of_event("checkpoint_failed", {"step": 40, "reason": "anew"})) == 1


def test_every_rewind_is_said_and_every_refused_checkpoint_once():
    rewound = {"reason": "loss jumped", "steps_done": 60, "checkpoint_step": 40}
    found = rules()
    for _ in range(2):
        (alert,) = found.of_event("rewound", rewound)
        assert alert.about == "rewind"
        assert alert.text.startswith("step 60: loss jumped; training went back to step 40")
    (alert,) = found.of_event("checkpoint_refused", {"reason": "bad digest"})
    event = {"event": "alert", "about": alert.about, "text": alert.text, "step": None}
    again = rules(events=[event])
    assert again.of_event("checkpoint_refused", {"reason": "bad digest"}) == []
    assert len(again.of_event("checkpoint_refused", {"reason": "another"})) == 1


def test_events_of_another_version_do_no_harm():
    odd = [{"event": "checkpoint_failed"}, {"event": "rewound"}, {"event": "alert"}, {}]
    assert said(rules(events=odd), [line(10, skipped=1)]) == [("non_finite_steps", 10)]
