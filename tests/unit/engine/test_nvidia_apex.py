"""NVIDIA apex is recognised on the disk, with fakes of everything that may be there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pretrain.config.engine import OptimConfig
from pretrain.engine import nvidia_apex
from pretrain.engine.optimizers import adam_state, make_optimizer, set_step
from pretrain.errors import EngineError

IMPOSTOR = "from pyramid.session import UnencryptedCookieSessionFactoryConfig\n"
FUSED_ADAM = """
import torch


class FusedAdam(torch.optim.Optimizer):
    \"\"\"The interface of apex's: the step is counted in the group.\"\"\"

    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8,
                 adam_w_mode=True, weight_decay=0.0, amsgrad=False, set_grad_none=True):
        assert adam_w_mode and not amsgrad
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            first, second = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - first)
                state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                mean = state["exp_avg"] / (1 - first ** group["step"])
                square = state["exp_avg_sq"] / (1 - second ** group["step"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))
"""
LAYER_NORM = """
import torch


def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6):
    assert not torch.is_autocast_enabled(input.device.type)
    return torch.nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


NVIDIAS = {
    "apex/__init__.py": "",
    "apex/optimizers/__init__.py": FUSED_ADAM,
    "apex/multi_tensor_apply/__init__.py": "",
    "apex/normalization/__init__.py": "",
    "apex/normalization/fused_layer_norm.py": LAYER_NORM,
}
EXTENSIONS = {"amp_C.py": "", "fused_layer_norm_cuda.py": ""}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def test_absence_is_said():
    assert "is not installed; build it" in str(nvidia_apex.why_unusable("amp_C"))


def test_the_package_of_that_name_on_pypi_is_named_and_never_run(site):
    write(site, {"apex/__init__.py": IMPOSTOR, "apex/lib/__init__.py": ""})
    reason = str(nvidia_apex.why_unusable("amp_C"))
    assert f"{site / 'apex'} is not NVIDIA apex" in reason
    assert "pip uninstall apex" in reason
    assert "apex" not in sys.modules


def test_apex_without_its_extensions_is_told_apart(site):
    write(site, NVIDIAS)
    assert "built without CUDA extensions (no module amp_C)" in str(
        nvidia_apex.why_unusable("amp_C")
    )
    assert "apex" not in sys.modules


def test_whole_apex_is_taken(site):
    write(site, NVIDIAS | EXTENSIONS)
    assert nvidia_apex.why_unusable("amp_C") is None
    assert nvidia_apex.why_unusable("fused_layer_norm_cuda") is None


def test_apex_that_does_not_load_says_so(site):
    broken = "raise ImportError('undefined symbol: _ZN3c10\\nmore')\n"
    write(site, NVIDIAS | EXTENSIONS | {"apex/optimizers/__init__.py": broken})
    with pytest.raises(EngineError) as caught:
        make_optimizer([], OptimConfig(lr=1.0, implementation="apex"))
    message = str(caught.value)
    assert message.startswith("optim.implementation: apex.optimizers is there and does not load:")
    assert "undefined symbol" in message
    assert "\n" not in message


def test_asking_for_it_in_vain_is_one_line_with_a_way_out(site):
    write(site, {"apex/__init__.py": IMPOSTOR})
    with pytest.raises(EngineError) as caught:
        make_optimizer([], OptimConfig(lr=1.0, implementation="apex"))
    assert str(caught.value).endswith("or give optim.implementation=torch")
    with pytest.raises(EngineError, match=r"engine\.layer_norm: .*give engine\.layer_norm=torch"):
        nvidia_apex.use_fused_layer_norms(nn.LayerNorm(3))


def test_an_impostor_does_not_break_deepspeed(tmp_path):
    write(tmp_path, {"apex/__init__.py": "raise SystemExit(3)\n", "apex/lib/__init__.py": ""})
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch\nfrom pretrain.engine import runtime\n"
        "runtime.import_deepspeed(torch.device('cpu'))\n"
        "from pretrain.engine.nvidia_apex import why_unusable\n"
        "assert 'is not NVIDIA apex' in why_unusable('amp_C')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def parameter(seed: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(seed)))


def trained(optimizer: torch.optim.Optimizer, value: nn.Parameter, steps: range) -> torch.Tensor:
    for step in steps:
        value.grad = parameter(100 + step).detach()
        optimizer.step()
    return value.detach().clone()


def test_fused_adam_is_made_as_adamw_and_its_step_count_is_restored(site):
    write(site, NVIDIAS | EXTENSIONS)
    first, second = parameter(1), parameter(1)
    numbers = {"weight_decay": 0.3}
    adamw = torch.optim.AdamW([{"params": [first], **numbers}], lr=0.1)
    fused = make_optimizer(
        [{"params": [second], **numbers}], OptimConfig(lr=0.1, implementation="apex")
    )
    assert type(fused).__module__ == "apex.optimizers"
    torch.testing.assert_close(trained(adamw, first, range(3)), trained(fused, second, range(3)))
    third = nn.Parameter(second.detach().clone())
    resumed = make_optimizer(
        [{"params": [third], **numbers}], OptimConfig(lr=0.1, implementation="apex")
    )
    for moment, value in adam_state(resumed, third).items():
        value.copy_(fused.state[second][moment])
    set_step(resumed, [third], 3)
    assert torch.equal(trained(fused, second, range(3, 5)), trained(resumed, third, range(3, 5)))


def test_layer_norms_are_apexs_in_fp32_on_the_same_parameters(site):
    write(site, NVIDIAS | EXTENSIONS)
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.LayerNorm(5)), nn.LayerNorm(5))
    names = list(model.state_dict())
    images = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
    norm = model[2].weight
    assert nvidia_apex.use_fused_layer_norms(model) == 2
    assert list(model.state_dict()) == names
    assert model[2].weight is norm
    assert "FusedLayerNorm" in type(model[1][0]).__name__
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images)
    assert torch.equal(found, expected)
