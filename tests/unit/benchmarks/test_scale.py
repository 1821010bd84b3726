"""The arithmetic of `benchmarks/scale.py`, by hand and at its limits."""

import pytest
from scale import fitted, main
from scale_model import (
    Links,
    Machine,
    collective_seconds,
    paper_bytes_per_parameter,
    step_seconds,
    weight_bytes,
)

from pretrain.config.engine import EngineConfig
from pretrain.config.load import load_run
from pretrain.errors import ConfigError
from pretrain.plan.traffic import Payload, payloads_of

LINKS = Links(
    gpus_per_node=8,
    inside_bytes_per_second=400e9,
    between_bytes_per_second=50e9,
    latency_seconds=0.0,
)
MACHINE = Machine(flop_per_second=100e12, memory_bytes_per_second=2e12, links=LINKS)


def gather(gigabytes=1.0, times=1):
    return Payload("all_gather", "weights", times, int(gigabytes * 1e9 / 4), 4, overlaps=False)


def reduce_all(gigabytes=1.0):
    return Payload("all_reduce", "gradients", 1, int(gigabytes * 1e9 / 4), 4, overlaps=False)


def step(gpus, stage, *, parameters=10**9, accumulation=1, images=64, machine=MACHINE):
    return step_seconds(
        machine,
        gpus,
        images_per_gpu=images,
        flop_per_image=1e11,
        parameters=parameters,
        accumulation=accumulation,
        payloads=payloads_of(EngineConfig(zero_stage=stage), parameters, accumulation),
    )


def test_one_gpu_sends_nothing():
    assert collective_seconds(reduce_all(), 1, LINKS) == 0
    alone = step(1, 1)
    assert alone.sending == alone.exposed == alone.exposed_if_overlapped == 0
    assert alone.total == alone.computing + alone.weights


def test_inside_a_node_by_hand():
    assert collective_seconds(gather(), 8, LINKS) == pytest.approx(7 / 8 / 400)
    assert collective_seconds(reduce_all(), 8, LINKS) == pytest.approx(2 * 7 / 8 / 400)
    assert collective_seconds(gather(), 2, LINKS) == pytest.approx(1 / 2 / 400)


def test_between_nodes_by_hand():
    """Each of eight adapters carries an eighth; as slow as the slower of the two ways."""
    assert collective_seconds(gather(), 16, LINKS) == pytest.approx(7 / 8 / 400)  # 1/2/8/50 is less
    slow = Links(8, 400e9, 5e9, 0.0)
    assert collective_seconds(gather(), 16, slow) == pytest.approx(1 / 2 / 8 / 5)
    assert collective_seconds(reduce_all(), 80, slow) == pytest.approx(2 * 9 / 10 / 8 / 5)
    assert collective_seconds(gather(times=3), 80, slow) == pytest.approx(3 * 9 / 10 / 8 / 5)


def test_messages_by_hand():
    """4 GB are 1e9 elements, so 20 buckets; log2(64) messages in a row, twice for an all-reduce."""
    late = Links(8, 1e30, 1e30, 1e-5)
    assert collective_seconds(gather(4.0), 64, late) == pytest.approx(20 * 6 * 1e-5)
    assert collective_seconds(reduce_all(4.0), 64, late) == pytest.approx(20 * 12 * 1e-5)


def test_a_step_by_hand():
    found = step(8, 1, accumulation=2)
    assert found.computing == pytest.approx(64 * 1e11 / 100e12)
    assert found.weights == pytest.approx(1e9 * (14 * 2 + 12 + 32 / 8) / 2e12)
    assert found.sending == pytest.approx(3 * 4 * 7 / 8 / 400)
    assert found.exposed == found.sending
    # The last of two backward passes takes 21.3 ms: more than reducing, which it then hides.
    assert found.exposed_if_overlapped == pytest.approx(4 * 7 / 8 / 400)
    assert found.efficiency == pytest.approx(found.computing / found.total)


def test_stage_2_reduces_after_each_micro_batch():
    once, four = step(8, 2), step(8, 2, accumulation=4)
    assert four.sending == pytest.approx(once.sending * (4 * 2 + 1) / 3)
    assert step(8, 1, accumulation=4).sending == pytest.approx(once.sending)


def test_stage_3_hides_what_computing_is_long_enough_for():
    hidden = step(8, 3)
    assert hidden.sending == pytest.approx(2 * 4 * 7 / 8 / 400)
    assert hidden.exposed == 0
    short = step(8, 3, images=8)
    assert short.exposed == pytest.approx(short.sending - short.computing)
    assert short.exposed_if_overlapped == short.exposed


def test_no_computing_hides_nothing():
    idle = step(8, 1, images=0)
    assert idle.exposed_if_overlapped == idle.exposed == idle.sending
    assert idle.efficiency == 0


def test_the_papers_stage_3_sends_half_as_much_again():
    assert paper_bytes_per_parameter(3) == 1.5 * paper_bytes_per_parameter(1)
    assert paper_bytes_per_parameter(2) == paper_bytes_per_parameter(1)


def test_state_is_divided_and_weights_are_not():
    assert weight_bytes(10, 1, 1) == 10 * (14 + 12 + 32)
    assert weight_bytes(10, 1, 10**9) == pytest.approx(10 * (14 + 12))


@pytest.mark.parametrize(("gpus", "group"), [(8, 64), (64, 64), (128, 32), (512, 8), (1024, 4)])
def test_mixing_groups_shrink_to_a_ranks_images(gpus, group):
    assert fitted("swin_l_22k", [], gpus).augment.mix_group == group


def test_more_gpus_than_images_are_refused():
    with pytest.raises(ConfigError, match=r"batch\.global_size"):
        fitted("swin_l_22k", [], 8192)


def test_the_script_prints_what_the_plan_counts(capsys):
    assert main(["--gpus", "8", "512", "--stages", "1", "--reduce-dtypes", "fp32"]) == 0
    printed = capsys.readouterr().out
    parameters = 228_565_093
    assert f"{parameters:,} parameters" in printed
    seconds = 512 * 6 * 34.5e9 / (0.4 * 989.4e12)
    (row,) = (line for line in printed.splitlines() if line.startswith("| 8 | 64 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == f"{12 * parameters * 7 / 8 / 1e9:.2f}"
    assert float(cells[6]) == pytest.approx(1000 * seconds, rel=1e-3)
    assert f"every {load_run('swin_l_22k').checkpoint.every_steps} steps" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "NVIDIA H300"], "--device: got 'NVIDIA H300'"),
        (["--gpus", "12"], "--gpus: got 12, expected whole nodes of 8"),
    ],
)
def test_what_it_cannot_compute_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        main(arguments)
