"""What is private to DeepSpeed stays in one file, and another version of it is refused by name."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.engine import shards
from pretrain.errors import EngineError

ENGINE = Path(shards.__file__).parent
PUBLIC = {  # documented: https://deepspeed.readthedocs.io/en/latest/, and torch's own
    "backward", "step", "train", "eval", "destroy", "was_step_applied", "get_global_grad_norm",
    "zero_optimization_stage", "module", "optimizer",
}  # fmt: skip


def fake(stage: int) -> SimpleNamespace:
    """An engine with everything that is looked for."""
    address = SimpleNamespace(start=0, numel=1)
    mapping = SimpleNamespace(
        param_group_index=0, hp_fragment_address=address, lp_fragment_address=address
    )
    parameters = [SimpleNamespace(_hp_mapping=mapping, ds_numel=1, ds_persist=True)]
    return SimpleNamespace(
        zero_optimization_stage=lambda: stage,
        data_parallel_group=None,
        optimizer=SimpleNamespace(**dict.fromkeys(shards.OF_OPTIMIZERS[stage])),
        module=SimpleNamespace(parameters=lambda: parameters),
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_private_that_moved_is_named(stage):
    shards.check_known(fake(stage))
    for name in shards.OF_OPTIMIZERS[stage]:
        zero = fake(stage)
        delattr(zero.optimizer, name)
        with pytest.raises(EngineError, match=rf"stage {stage} has no {name}; .*==0\.19\.8"):
            shards.check_known(zero)
    for name in shards.OF_PARAMETERS[stage]:
        zero = fake(stage)
        delattr(zero.module.parameters()[0], name)
        with pytest.raises(EngineError, match=f"a parameter in stage {stage} has no {name}"):
            shards.check_known(zero)


def test_the_parts_of_a_mapping_are_looked_at():
    for name in shards.OF_MAPPINGS:
        zero = fake(1)
        delattr(zero.module.parameters()[0]._hp_mapping, name)
        with pytest.raises(EngineError, match=f"mapping has no {name}"):
            shards.check_known(zero)
    zero = fake(2)
    del zero.module.parameters()[0]._hp_mapping.hp_fragment_address.numel
    with pytest.raises(EngineError, match="address has no numel"):
        shards.check_known(zero)


def test_a_collective_that_moved_is_named(monkeypatch):
    backend = SimpleNamespace(**dict.fromkeys(shards.COLLECTIVES))
    package = SimpleNamespace(comm=SimpleNamespace(cdb=backend))
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(comm=package))
    monkeypatch.setitem(sys.modules, "deepspeed.comm", package)
    shards.check_communication()
    del backend.all_gather
    with pytest.raises(EngineError, match=r"backend has no all_gather; .*==0\.19\.8"):
        shards.check_communication()


def test_a_question_to_the_host_that_moved_is_named():
    """Unnoticed, every step would wait for the device again."""
    with pytest.raises(EngineError, match=r"types has no is_invalid_grad_norm; .*==0\.19\.8"):
        shards.skip_on_device(fake(1))


def attributes_of(tree: ast.AST, owners: set[str]) -> set[str]:
    """Names of the attributes of these variables, and of ``zero.optimizer`` and the like."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
        if name in owners:
            found.add(node.attr)
    return found


def test_every_private_that_is_used_is_checked():
    tree = ast.parse(Path(shards.__file__).read_text())
    checked = set().union(*shards.OF_OPTIMIZERS.values())
    used = attributes_of(tree, {"optimizer"})
    assert used - checked <= {"optimizer"}
    assert checked - used <= {"optimizer"}
    mapping = attributes_of(tree, {"mapping"})
    assert mapping == set(shards.OF_MAPPINGS)


@pytest.mark.parametrize(
    "path", [path for path in ENGINE.glob("*.py") if path.name != "shards.py"], ids=lambda p: p.stem
)
def test_no_other_file_of_the_engine_touches_one(path):
    tree = ast.parse(path.read_text())
    assert attributes_of(tree, {"_zero", "zero"}) <= PUBLIC
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepspeed"):
            assert node.module in {"deepspeed", "deepspeed.ops.adam"}
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = getattr(node.value, "id", "")
            known = owner in {"self", "torch"} or node.attr.startswith("__")
            assert known, f"{path.name}: {owner}.{node.attr}"
