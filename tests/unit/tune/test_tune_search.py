"""The order of trials and what is taken, on devices that are functions."""

from collections.abc import Callable
from dataclasses import replace

from pretrain.tune.candidates import CHECKPOINTING_TRIED, Candidate, Space
from pretrain.tune.search import search
from pretrain.tune.table import table
from pretrain.tune.trials import Failure, Measured, Trials

GIB = 2**30
COMPILE = "engine.compile"
OWN = Candidate(64, ("none",) * 4, ((COMPILE, "false"),))
SPACE = Space(OWN, (32, 64, 128, 256, 512), CHECKPOINTING_TRIED, {COMPILE: (False, True)})
KEPT = {"none": 1.0, "selective_mlp": 0.6, "full": 0.3, "full_offload": 0.2}
"""Memory of a stage's activations; recomputing costs a third of what is not kept."""


def gib(candidate: Candidate) -> float:
    return 10 + candidate.micro_batch / 8 * sum(KEPT[k] for k in candidate.checkpointing) / 4


def seconds(candidate: Candidate) -> float:
    recomputed = 1 - sum(KEPT[kind] for kind in candidate.checkpointing) / 4
    compiled = 0.8 if dict(candidate.choices)[COMPILE] == "true" else 1.0
    return compiled * (0.02 + candidate.micro_batch / 1000) * (1 + recomputed / 3)


class Device:
    """A device with so much memory, whose candidates take as long as the functions above say."""

    def __init__(
        self,
        memory_gib: float,
        *,
        spread: float = 0.005,
        fails: Callable[[Candidate], Failure | None] = lambda _: None,
        runs: int = 1000,
        estimated: Callable[[Candidate], float] = gib,
    ) -> None:
        self.ran: list[Candidate] = []
        self._memory_gib, self._spread, self._fails = memory_gib, spread, fails
        self.trials = Trials(
            self.run,
            lambda candidate: round(GIB * estimated(candidate)),
            round(GIB * memory_gib),
            60.0,
            lambda: 60.0 * (runs - len(self.ran)),
            lambda _: None,
        )

    def run(self, candidate: Candidate, limit_seconds: float) -> Measured | Failure:
        assert limit_seconds <= 60
        self.ran.append(candidate)
        failure = self._fails(candidate)
        if failure is not None:
            return failure
        if gib(candidate) > self._memory_gib:
            return Failure("memory", "OutOfMemoryError")
        rate = candidate.micro_batch / seconds(candidate)
        held = round(GIB * gib(candidate))
        return Measured(rate, self._spread, 9.0, held, held)

    def taken(self, space: Space = SPACE) -> Candidate | None:
        search(space, self.trials)
        best = self.trials.best(space.own)
        return None if best is None else best.candidate


def test_it_finds_the_fastest_that_fits_in_a_few_trials():
    device = Device(80)
    taken = device.taken()
    fits = [c for c in every() if gib(c) <= 0.94 * 80]
    assert taken == min(fits, key=lambda c: seconds(c) / c.micro_batch)
    assert len(set(device.ran)) <= 8 < len(every())


def every() -> list[Candidate]:
    return [
        Candidate(size, kind, ((COMPILE, value),))
        for size in SPACE.sizes
        for kind in SPACE.checkpointing
        for value in ("false", "true")
    ]


def test_memory_decides_between_sizes_and_recomputing_only_where_it_pays():
    # 32 GiB hold 128 images with everything kept; twice as many would have to compute again.
    taken = Device(32).taken()
    assert taken == Candidate(128, ("none",) * 4, ((COMPILE, "true"),))


def test_recomputing_is_taken_where_nothing_else_fits():
    taken = Device(14).taken()
    assert taken is not None
    assert taken.checkpointing != ("none",) * 4
    assert gib(taken) <= 0.94 * 14


def test_recomputing_that_the_config_asks_for_goes_where_memory_is_not_short():
    own = replace(OWN, checkpointing=("full",) * 4)
    taken = Device(80).taken(replace(SPACE, own=own))
    assert taken is not None
    assert taken.checkpointing == ("none",) * 4


def test_what_is_faster_by_no_more_than_noise_loses_to_the_configs_own():
    noisy = Device(80, spread=0.5)
    assert noisy.taken() == OWN
    assert max(row.rate for row in noisy.trials.rows) > noisy.trials.rate(OWN)


def test_estimates_keep_what_cannot_fit_from_being_tried():
    device = Device(30)
    device.taken()
    assert all(gib(candidate) <= 1.1 * 30 for candidate in device.ran)
    left_out = [row for row in device.trials.rows if row.candidate not in device.ran]
    assert left_out
    assert all(
        isinstance(row.outcome, Failure) and row.outcome.kind == "not tried" for row in left_out
    )


def test_an_estimate_that_was_too_low_is_corrected_by_what_was_measured():
    device = Device(32, estimated=lambda candidate: gib(candidate) - 9)
    device.taken()
    assert all(gib(candidate) <= 1.1 * 32 for candidate in device.ran)


def test_after_one_ran_out_of_memory_nothing_that_needs_more_is_tried():
    device = Device(32, estimated=lambda candidate: candidate.micro_batch / 1000)
    device.taken()
    short = [candidate for candidate in device.ran if gib(candidate) > 32]
    assert len([c for c in short if c.checkpointing == ("none",) * 4]) <= 1


def test_a_setting_that_fails_is_a_row_and_nothing_more():
    def fails(candidate: Candidate) -> Failure | None:
        compiled = dict(candidate.choices)[COMPILE] == "true"
        return Failure("compile", "InductorError: no compiler") if compiled else None

    device = Device(80, fails=fails)
    taken = device.taken()
    assert taken is not None
    assert dict(taken.choices)[COMPILE] == "false"
    assert taken.micro_batch == 512
    text = table(device.trials, OWN, device.trials.best(OWN))
    assert "micro-batch 64, compile true" in text
    assert "does not compile: InductorError: no compiler" in text
    assert next(line for line in text.splitlines() if "taken" in line).startswith("micro-batch 512")


def test_a_config_whose_own_setting_fails_is_helped_by_another():
    own = OWN.choosing(COMPILE, True)
    fails = lambda c: Failure("compile", "x") if c.choices == own.choices else None  # noqa: E731
    taken = Device(80, fails=fails).taken(replace(SPACE, own=own))
    assert taken is not None
    assert dict(taken.choices)[COMPILE] == "false"


def test_where_nothing_works_nothing_is_taken():
    device = Device(80, fails=lambda _: Failure("crash", "exit code 1"))
    assert device.taken() is None
    assert "failed: exit code 1" in table(device.trials, OWN, None)


def test_the_end_of_the_time_leaves_what_was_found():
    device = Device(80, runs=2)
    assert not search(SPACE, device.trials)
    assert device.ran == [OWN, OWN.choosing(COMPILE, True)]
    best = device.trials.best(OWN)
    assert best is not None
    assert best.candidate == device.ran[1]


def test_the_best_and_the_configs_own_are_measured_twice():
    device = Device(80)
    taken = device.taken()
    assert device.ran.count(OWN) == 2
    assert taken is not None
    assert device.ran.count(taken) == 2
    assert len(device.ran) == len(set(device.ran)) + 2


def test_two_measurements_that_differ_are_noise():
    rates = iter((100.0, 110.0, 110.0, 100.0))
    trials = Trials(
        lambda *_: Measured(next(rates), 0.0, 1.0, GIB, GIB),
        lambda _: GIB, 9 * GIB, 60.0, lambda: 60.0, lambda _: None,
    )  # fmt: skip
    other = OWN.choosing(COMPILE, True)
    for candidate in (OWN, other):
        trials.rate(candidate)
    best = trials.best(OWN)
    assert best is not None
    assert best.candidate == other
    for candidate in (OWN, other):
        trials.again(candidate)
    best = trials.best(OWN)
    assert best is not None
    assert best.candidate == OWN
    assert best.rate == 105.0


def test_a_start_that_takes_longer_must_pay_within_the_run():
    compiled = OWN.choosing(COMPILE, True)

    def taken(run_images: float) -> Candidate:
        measured = {
            OWN: Measured(100.0, 0.0, 10.0, GIB, GIB),
            compiled: Measured(125.0, 0.0, 110.0, GIB, GIB),
        }
        trials = Trials(
            lambda candidate, _: measured[candidate],
            lambda _: GIB, 9 * GIB, 60.0, lambda: 60.0, lambda _: None, run_images,
        )  # fmt: skip
        for candidate in measured:
            trials.rate(candidate)
        best = trials.best(OWN)
        assert best is not None
        said = "starts too long for so short a run" in table(trials, OWN, best)
        assert said == (best.candidate == OWN)
        return best.candidate

    assert taken(40_000) == OWN  # 100 s more for 80 s gained
    assert taken(4_000_000) == compiled
    assert taken(float("inf")) == compiled


def test_what_fills_the_memory_is_not_taken():
    device = Device(18.1)  # 64 images take 18 GiB
    taken = device.taken()
    assert taken is not None
    assert gib(taken) <= 0.94 * 18.1
    text = table(device.trials, OWN, device.trials.best(OWN))
    assert "too near to the device's memory" in text
