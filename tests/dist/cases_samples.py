"""What ranks do in test_samples_ranks.py: sampled steps beside a plain loop."""

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from cases_parity import Case, large, make_engine, make_model, plain_optimizer, rate
from tiny import micro_batches
from torch import nn

from pretrain import dist
from pretrain.engine import shards, updates
from pretrain.engine.engine import Engine
from pretrain.metrics.activations import Activations
from pretrain.metrics.meter import Meter
from pretrain.world import World

STEPS = 2
"""The last of them is sampled."""


def plain(case: Case) -> dict[str, float]:
    """What the engine and the meter should say of the last step, from a loop without either."""
    model = make_model(Case(family=case.family))
    stages = model.parameter_stages()
    optimizer = plain_optimizer(case, model)
    outputs: list[torch.Tensor] = []
    for stage in model.layers:
        stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    before: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        model.zero_grad()
        outputs.clear()
        images, targets = next(large(micro_batches(step, 0, 1, 1)))
        F.cross_entropy(model(images), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), case.clip or float("inf"))
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["scale"]
        optimizer.step()
    after = dict(model.named_parameters())
    found: dict[str, float] = {}
    for stage, output in enumerate(outputs, 1):
        own = [name for name, of in stages.items() if of == stage - 1]
        moved = sum(float((after[name].detach() - before[name]).square().sum()) for name in own)
        whole = sum(float(before[name].square().sum()) for name in own)
        found[f"train/update_ratio_stage_{stage}"] = (moved / whole) ** 0.5
        found[f"train/activation_rms_stage_{stage}"] = float(output.square().mean()) ** 0.5
        found[f"train/activation_max_stage_{stage}"] = float(output.abs().max())
    return found


def sampled_engine(world: World, case: Case) -> tuple[Engine, Activations]:
    model = make_model(case)
    engine = make_engine(world, case, model=model, stages=model.parameter_stages())
    return engine, Activations(model.layers)


def ours(world: World, case: Case) -> dict[str, Any]:
    """What the meter says of the last step, the weights after it, and its collectives."""
    engine, activations = sampled_engine(world, case)
    meter = Meter()
    for step in range(STEPS):
        mine = large(micro_batches(step, world.rank, world.size, case.accumulation))
        with activations.watched(True):
            result = engine.train_step(mine, lr=rate(step), sampled=True)
        meter.add(result)
    assert result.sample is not None
    assert result.sample.communication_seconds is not None
    found = {
        "seconds": result.sample.communication_seconds(),
        "values": meter.read(activations.taken()).values,
        "weights": engine.fragments(),
        **collectives(engine, world, case),
    }
    engine.close()
    return found


def collectives(engine: Engine, world: World, case: Case) -> dict[str, int]:
    """How many collectives of a step are seen, and how many there are by torch's profiler."""
    seen: list[Any] = []

    def around(collective: Any) -> Any:
        return lambda *args, **kwargs: (seen.append(collective), collective(*args, **kwargs))[1]

    mine = large(micro_batches(STEPS, world.rank, world.size, case.accumulation))
    with shards.collectives_through(around), torch.profiler.profile() as profile:
        engine.train_step(mine, lr=rate(STEPS))
    counts = [one.count for one in profile.key_averages() if one.key.startswith("gloo:")]
    return {"seen": len(seen), "there": sum(counts)}


def unsampled(world: World, case: Case) -> dict[str, torch.Tensor]:
    engine, _ = sampled_engine(world, case)
    for step in range(STEPS):
        mine = large(micro_batches(step, world.rank, world.size, case.accumulation))
        assert engine.train_step(mine, lr=rate(step)).sample is None
    weights = engine.fragments()
    engine.close()
    return weights


def compare(world: World, case: Case) -> dict[str, Any]:
    """How far the meter is off by kind, as fractions; activations are of one micro-batch only."""
    expected, found, twin = plain(case), ours(world, case), unsampled(world, case)
    kinds = ["update_ratio"]
    kinds += ["activation_rms", "activation_max"] if case.accumulation == 1 else []
    return {
        "case": asdict(case),
        "off": {
            prefix: max(
                abs(found["values"][name] / value - 1)
                for name, value in expected.items()
                if name.startswith(f"train/{prefix}")
            )
            for prefix in kinds
        },
        "same": dist.gather_objects(
            all(torch.equal(value, found["weights"][key]) for key, value in twin.items())
        ),
        "seconds": found["seconds"],
        "seen": found["seen"],
        "there": found["there"],
    }


def suite(world: World, rows: list[dict[str, Any]], sampled: list[int]) -> dict[str, Any]:
    """Rows with everything looked at; then those of these numbers with what is really sampled."""
    elements = updates.SAMPLED_ELEMENTS
    updates.SAMPLED_ELEMENTS = 2**40
    whole = [compare(world, Case(**row)) for row in rows]
    updates.SAMPLED_ELEMENTS = elements
    return {"whole": whole, "sampled": [compare(world, Case(**rows[row])) for row in sampled]}
