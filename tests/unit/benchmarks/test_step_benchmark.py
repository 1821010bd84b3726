"""What `benchmarks/step.py` makes of turns, and how it calls other libraries' networks."""

import io
import json
import sys
from argparse import Namespace
from functools import partial

import pytest
import step
import step_turns
import step_worker
import torch
from plain_training import CLIP_GRAD_NORM, fused_adamw, plain_step
from step_matrix import OUR_PATHS, Cell, Subject, cells, subjects
from step_models import (
    NotMeasurableError,
    count_macs,
    import_library,
    timm_network,
    torchvision_network,
    transformers_network,
)
from step_table import baseline, goals, host_seconds, ratios, remarks, table
from step_turns import Measured, Row
from torch import nn

from pretrain.errors import ConfigError
from pretrain.models.build import build
from pretrain.models.cost import count_forward_macs, count_parameters

TINY = Cell("small", 64, 4, "fp32", "none", 10)
GOALS = Cell("swin_l", 224, 128, "bf16", "none", 21841)
ENGINE, TIMM, PLAIN = Subject("engine", path="auto"), Subject("timm"), Subject("plain")


def row(*wall_seconds):
    """Turns that took so long, half of it in the forward pass."""
    parts = {"augment": 0.0, "backward": 0.0, "optimizer": 0.0}
    return Row(
        turns=[
            {
                "wall_seconds": seconds,
                "cpu_seconds": 2 * seconds,
                "issue_seconds": seconds / 4,
                "peak_gib": 1.5,
                "part_seconds": {"forward": seconds / 2, **parts},
            }
            for seconds in wall_seconds
        ]
    )


def columns(lines, label):
    """A row of a table by its columns' names."""
    names, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    (found,) = (cells for cells in rows if cells[0].strip("*") == label)
    return dict(zip(names, found, strict=True))


def test_ratios_are_within_rounds_and_rates_are_of_the_micro_batch():
    rows = {ENGINE: row(1.0, 2.0, 4.0), TIMM: row(2.0, 2.0, 12.0)}
    found = columns(table(TINY, Measured(rows, [1e9, 1e9, 1e9]), None), ENGINE.label)
    assert found["images/s"] == "2.0 [1.0, 4.0]"
    assert found["images/s ÷ timm's, eager"] == "2.00 [1.00, 3.00]"
    assert found["CPU time of timm's, eager ÷ its own"] == "2.00 [1.00, 3.00]"
    assert (found["ms"], found["forward"]) == ("2000.0 [1000.0, 4000.0]", "1000.0")
    assert (found["host"], found["CPU ms"], found["peak GiB"]) == ("1000.0", "4000.0", "1.5")


def test_utilisation_is_of_the_devices_peak_and_of_the_product_of_the_same_round():
    flop = 6 * count_forward_macs(GOALS.shape) * GOALS.micro_batch
    measured = Measured({ENGINE: row(1.0, 2.0)}, [2 * flop, flop])
    found = columns(table(GOALS, measured, "NVIDIA H200"), ENGINE.label)
    assert found["of a product's FLOP/s"] == "50.0 [50.0, 50.0] %"
    shares = [100 * flop / seconds / 989.4e12 for seconds in (1.0, 2.0)]
    assert found["of the peak FLOP/s"] == (
        f"{sum(shares) / 2:.1f} [{shares[1]:.1f}, {shares[0]:.1f}] %"
    )
    assert found["issued in"] == "375.0"
    unknown = columns(table(GOALS, measured, "Some GPU"), ENGINE.label)
    assert unknown["of the peak FLOP/s"] == ""


def test_a_row_that_ended_says_why_and_is_no_baseline():
    gone = Row(turns=row(1.0).turns, end="out of memory (70 GiB were left to it)")
    rows = {ENGINE: row(1.0), TIMM: gone, PLAIN: row(3.0)}
    lines = list(table(TINY, Measured(rows, [1e9]), None))
    assert columns(lines, TIMM.label)["images/s"] == gone.end
    assert columns(lines, ENGINE.label)["images/s ÷ our network, plain torch's, eager"].startswith(
        "3"
    )
    assert len({line.count("|") for line in lines}) == 1
    assert baseline({TIMM: gone, ENGINE: row(1.0)}, compiled=False) is None


def test_goals_take_the_fastest_of_ours_and_stay_open_where_nothing_was_measured():
    compiled = Subject("engine", True, "auto")
    rows = {ENGINE: row(2.0), compiled: row(1.0), TIMM: row(3.0)}
    lines = list(goals({TINY: Measured({}), GOALS: Measured(rows, [1e15])}, "NVIDIA H200"))
    eager, under_compile, utilisation = (line.split("|")[2].strip() for line in lines[-3:])
    assert eager == f"3.00 [3.00, 3.00] ({compiled.label})"
    assert under_compile.startswith("open: timm was not asked for")
    share = 100 * 6 * count_forward_macs(GOALS.shape) * GOALS.micro_batch / 989.4e12
    assert utilisation.startswith(f"{share:.1f} [")
    rows[TIMM] = Row(end="not installed")
    line = list(goals({GOALS: Measured(rows, [1e15])}, "NVIDIA H200"))[-3]
    assert "open: timm: not installed" in line
    assert all("open: no GPU" in line for line in list(goals({}, None))[-3:])
    assert all("open: not among" in line for line in list(goals({TINY: Measured(rows)}, "x"))[-3:])


def test_a_network_that_is_not_ours_is_told_of():
    reference = {"parameters": 1000, "forward_macs": 10**6}
    same = Row(facts={"parameters": 1000, "forward_macs": 10**6 + 1})
    other = Row(facts={"parameters": 1002, "forward_macs": 10**6}, remarks=["it fell back"])
    assert list(remarks({TIMM: same, PLAIN: other}, reference)) == [
        f"{PLAIN.label}: 1,002 parameters, ours has 1,000.",
        f"{PLAIN.label}: it fell back.",
    ]


def test_the_matrix_is_every_combination_and_only_ours_has_paths():
    found = cells(["swin_l", "swin_t"], [224, 384], None, ["bf16"], ["none", "full"], 1000)
    assert len(found) == 8
    assert (found[0].model, found[0].image_size, found[0].recompute) == ("swin_l", 224, "none")
    assert {cell.image_size: cell.micro_batch for cell in found} == {224: 128, 384: 32}
    assert found[0].config().model.window_size == 7
    for overrides in OUR_PATHS.values():
        found[0].config(overrides)  # settings that go together
    assert found[-1].config().engine.activation_checkpointing == ("full",) * 4
    both = subjects(["engine", "timm"], ["eager", "compiled"], ["auto"])
    assert len({one.label for one in subjects(["engine"], ["eager"], [*OUR_PATHS])}) == 3
    assert both == [ENGINE, TIMM, Subject("engine", True, "auto"), Subject("timm", True)]


def test_parts_add_up_and_the_loss_is_the_forward_passs(monkeypatch):
    times = iter([0.0, 1.0, 1.0, 4.0, 4.0, 9.0])
    monkeypatch.setattr(step_worker.time, "perf_counter", lambda: next(times))
    clock = step_worker.PartClock(torch.device("cpu"))
    for part in ("forward", "loss", "optimizer"):
        with clock.around(part):
            pass
    assert clock.take() == {"augment": 0.0, "forward": 4.0, "backward": 0.0, "optimizer": 5.0}
    assert sum(clock.take().values()) == 0.0
    turn = {"wall_seconds": 10.0, "part_seconds": {"forward": 4.0, "optimizer": 5.0}}
    assert host_seconds(turn) == pytest.approx(1.0)
    assert ratios(row(1.0), row(3.0)) == [3.0]


class ScriptedWorker:
    """Answers without a process: timm never does, plain torch has no memory in its second turn."""

    def __init__(self, told, given, limit_seconds):
        self.told = told
        self.name = given["subject"]["library"] if "subject" in given else "product"
        self.turns = 0
        told.append(f"{self.name} starts")

    def answer(self):
        if self.name == "timm":
            raise step_turns.WorkerError("no answer in 5 s")
        return {"facts": {"parameters": 7}, "remarks": []}

    def turn(self, warm_up, steps):
        self.told.append(f"{self.name} {warm_up} {steps}")
        self.turns += 1
        if self.name == "plain" and self.turns == 2:
            return {"end": "out of memory"}
        return {"flop_per_second": 1.0, "wall_seconds": 2.0}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.told.append(f"{self.name} ends")


def take(monkeypatch, *, apart):
    told = []
    monkeypatch.setattr(step_turns, "Worker", partial(ScriptedWorker, told))
    turns = step_turns.Turns("cpu", 2, 3, apart, 5.0, lambda line: None)
    return turns.take(TINY, [ENGINE, TIMM, PLAIN]), told


def test_turns_rotate_and_who_ended_takes_no_more(monkeypatch):
    measured, told = take(monkeypatch, apart=False)
    assert told == [
        "product starts", "engine starts", "timm starts", "plain starts",
        "engine 3 0", "plain 3 0",
        "product 1 3", "engine 1 3", "plain 1 3",
        "product 1 3", "engine 1 3",
        "plain ends", "timm ends", "engine ends", "product ends",
    ]  # fmt: skip
    engine, timm, plain = measured.rows.values()
    assert (len(engine.turns), engine.end, engine.facts) == (2, None, {"parameters": 7})
    assert (timm.end, timm.failed) == ("no answer in 5 s", True)
    assert (plain.end, plain.failed) == ("out of memory", False)
    assert measured.product_flop_per_second == [1.0, 1.0]


def test_apart_one_process_lives_at_a_time_and_warms_up_each_time(monkeypatch):
    measured, told = take(monkeypatch, apart=True)
    turn = "{0} starts|{0} 3 3|{0} ends"
    first, second = ("product", "engine"), ("product", "plain", "engine")
    expected = [turn.format(name).split("|") for name in (*first, "timm", "plain", *second)]
    expected[2].remove("timm 3 3")
    assert told == [line for turn in expected for line in turn]
    assert len(measured.rows[PLAIN].turns) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (NotMeasurableError("not installed"), "not installed"),
    ],
)
def test_a_worker_says_why_it_takes_no_turn(monkeypatch, error, said):
    def make(given, device):
        raise error

    monkeypatch.setattr(step_worker, "make", make)
    answers = io.StringIO()
    assert step_worker.serve({"device": "cpu"}, answers) == 0
    assert json.loads(answers.getvalue()) == {"end": said}


def test_a_worker_hides_no_other_error(monkeypatch):
    def make(given, device):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(step_worker, "make", make)
    with pytest.raises(RuntimeError, match="shapes differ"):
        step_worker.serve({"device": "cpu"}, io.StringIO())


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a package of another's name where it is imported from."""

    def put(name, files):
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(tmp_path)

    yield put
    for module in [module for module in sys.modules if module.startswith(("timm", "torchvision"))]:
        del sys.modules[module]


RECORDING = """
class SwinTransformer:
    def __init__(self, **given):
        self.given = given
    def set_grad_checkpointing(self, on):
        self.given["checkpointing"] = on
"""


def test_timm_is_given_our_shape_and_its_attention_as_asked(stand_in):
    create = "\ndef create_model(name, **given):\n    return SwinTransformer(name=name, **given)\n"
    fused = (
        "asked = []\ndef set_fused_attn(on, experimental):\n    asked.append((on, experimental))\n"
    )
    stand_in("timm", {"__init__.py": RECORDING + create, "layers.py": fused})
    given = timm_network(GOALS.shape, "full").given
    assert given == {
        "name": "swin_large_patch4_window7_224",
        "img_size": 224,
        "window_size": 7,
        "embed_dim": 192,
        "depths": (2, 2, 18, 2),
        "num_heads": (6, 12, 24, 48),
        "num_classes": 21841,
        "drop_path_rate": 0.2,
        "checkpointing": True,
    }
    assert not timm_network(TINY.shape, "none", fused_attention=True).given["checkpointing"]
    assert import_library("timm.layers").asked == [(False, False), (True, True)]
    with pytest.raises(NotMeasurableError, match="whole blocks only"):
        timm_network(TINY.shape, "selective_mlp")


def test_torchvision_is_given_our_shape(stand_in):
    files = {"__init__.py": "", "models/__init__.py": "", "models/swin_transformer.py": RECORDING}
    stand_in("torchvision", files)
    given = torchvision_network(GOALS.shape, "none").given
    assert given == {
        "patch_size": [4, 4],
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": [7, 7],
        "stochastic_depth_prob": 0.2,
        "num_classes": 21841,
    }
    with pytest.raises(NotMeasurableError, match="no activation checkpointing"):
        torchvision_network(TINY.shape, "full")


def test_what_cannot_be_imported_says_so(stand_in):
    with pytest.raises(NotMeasurableError, match=r"^not installed$"):
        import_library("a_library_that_nobody_has.models")
    stand_in("timm", {"__init__.py": "raise RuntimeError('operator nms does not exist')"})
    with pytest.raises(NotMeasurableError, match="import fails: operator nms does not exist"):
        timm_network(TINY.shape, "none")


def test_transformers_network_is_ours_in_parameters_and_products():
    theirs, ours = transformers_network(TINY.shape, "full"), build(TINY.config().model)
    for network in (theirs, ours):
        assert sum(map(torch.numel, network.parameters())) == count_parameters(TINY.shape)
        assert count_macs(network, TINY.image_size) == count_forward_macs(TINY.shape)
    assert theirs(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_the_plain_step_clips_the_mean_loss_and_decays_weights_alone():
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    weight, bias = (parameter.detach().clone() for parameter in (network.weight, network.bias))
    images, targets = 1e3 * torch.randn(5, 4), torch.softmax(torch.randn(5, 3), -1)
    optimizer = fused_adamw(network)
    seen = []
    hook = optimizer.register_step_pre_hook(
        lambda *_: seen.append([parameter.grad.clone() for parameter in network.parameters()])
    )
    take = plain_step(
        network, optimizer, precision="fp32", device=torch.device("cpu"),
        next_batch=lambda: (images, targets),
    )  # fmt: skip
    loss = take()
    hook.remove()
    logits = images @ weight.T + bias
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(-1)).sum(-1).mean())
    assert torch.cat([grad.flatten() for grad in seen[0]]).norm() == pytest.approx(CLIP_GRAD_NORM)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["params"][0] is network.weight
    assert network.weight.grad is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "100"], "--sizes: expected multiples of 32 pixels, got 100"),
        (["--micro-batches", "3"], "--micro-batches: expected even numbers above 0, got 3"),
        (["--precisions", "fp16"], "--precisions: fp16 needs a GPU"),
        (["--rounds", "0"], "--rounds and --steps: expected 1 or more"),
        (["--models", "swin_t", "--sizes", "0"], "--sizes: expected multiples of 32 pixels, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, said):
    with pytest.raises(ConfigError, match=said):
        step.main([*arguments, "--device", "cpu"])


def test_what_time_did_not_allow_is_told():
    given = Namespace(device="cpu", rounds=1, steps=1, minutes=7.0)
    text = "\n".join(step.report({TINY: None}, given, "python benchmarks/step.py"))
    assert "Not reached in 7 minutes" in text
    assert "figures on GPUs are open" in text


@pytest.mark.slow
def test_the_command_measures_a_tiny_network_and_writes_one_file(tmp_path, stand_in, monkeypatch):
    """Ours, plain torch, and a library that does not import, in processes of their own."""
    stand_in("timm", {"__init__.py": "raise ImportError('no such operator')"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    output = tmp_path / "step.md"
    arguments = ["--sizes", "64", "--micro-batches", "2", "--precisions", "fp32", "--classes", "10"]
    arguments += ["--libraries", "engine", "plain", "timm", "--rounds", "2", "--steps", "1"]
    assert step.main([*arguments, "--device", "cpu", "--output", str(output)]) == 0
    lines = output.read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and "eager" in line]
    ours, plain = (
        columns([rows[0], "", *rows[1:]], label) for label in (ENGINE.label, PLAIN.label)
    )
    for found in (ours, plain):
        assert float(found["images/s"].split()[0]) > 0
        assert float(found["forward"]) > 0
        assert float(found["backward"]) > 0
        assert float(found["optimizer"]) > 0
        assert float(found["augment"]) > 0
    assert columns(rows, TIMM.label)["images/s"].endswith("no such operator")
    assert not [line for line in lines if "ours has" in line]
