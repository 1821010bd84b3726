"""NVIDIA apex, where it is really there: found on the disk, before anything of it is run.

The package called apex on PyPI is a web toolkit, whose import fails in ways that break others.
NVIDIA's is built from source, and without its CUDA extensions nothing used here works.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pretrain.errors import EngineError

_BUILD = (
    "build it in github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install -v --no-build-isolation ."
)


def why_unusable(extension: str) -> str | None:
    """Return why NVIDIA's apex cannot be used here, None where it can. Imports nothing.

    Args:
        extension: the compiled module that is needed, such as ``amp_C``.
    """
    spec = find_spec("apex")
    if spec is None:
        return f"NVIDIA apex is not installed; {_BUILD}"
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not any(_is_nvidias(folder) for folder in folders):
        where = folders[0] if folders else spec.origin
        return (
            f"{where} is not NVIDIA apex (the package of that name on PyPI is a web toolkit); "
            f"pip uninstall apex, then {_BUILD}"
        )
    if find_spec(extension) is None:
        return f"{folders[0]} was built without CUDA extensions (no module {extension}); {_BUILD}"
    return None


def _is_nvidias(folder: Path) -> bool:
    return (folder / "optimizers" / "__init__.py").is_file() and (
        folder / "multi_tensor_apply"
    ).is_dir()


@contextlib.contextmanager
def unusable_hidden() -> Iterator[None]:
    """Let ``import apex`` fail cleanly inside a ``with`` block where it is not NVIDIA's, whole.

    DeepSpeed imports whatever has the name, and goes down with it.
    """
    if why_unusable("amp_C") is None or "apex" in sys.modules:
        yield
        return
    sys.modules["apex"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["apex"]


def import_from_apex(module: str, extension: str, field: str) -> ModuleType:
    """Import a module of apex.

    Args:
        module: its name, such as ``apex.optimizers``.
        extension: the compiled module that it needs.
        field: what in the config asks for it, for the message.

    Raises:
        EngineError: apex is not there, is another package, or does not load.
    """
    reason = why_unusable(extension)
    if reason is not None:
        raise EngineError(f"{field}: {reason}, or give {field}=torch")
    try:
        return import_module(module)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        line = str(error).partition("\n")[0]
        raise EngineError(
            f"{field}: {module} is there and does not load: {line}; {_BUILD}"
        ) from error


def use_fused_layer_norms(model: nn.Module) -> int:
    """Let every `torch.nn.LayerNorm` of a model be computed by apex; its parameters stay.

    Returns:
        how many there were.

    Raises:
        EngineError: as `import_from_apex`.
    """
    function = import_from_apex(
        "apex.normalization.fused_layer_norm", "fused_layer_norm_cuda", "engine.layer_norm"
    ).fused_layer_norm_affine
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.LayerNorm
    ]
    for parent, name, child in found:
        setattr(parent, name, _FusedLayerNorm(child, function))
    return len(found)


class _FusedLayerNorm(nn.LayerNorm):
    """A layer norm over the last axis that apex computes, on the parameters of another."""

    def __init__(self, original: nn.LayerNorm, function: object) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps = original.normalized_shape, original.eps
        self.elementwise_affine = original.elementwise_affine
        self.weight, self.bias = original.weight, original.bias
        self._function = function

    def forward(self, input: Tensor) -> Tensor:
        """[…, C] to the same. Without autocast, under which apex would round to 16 bits first."""
        with torch.autocast(input.device.type, enabled=False):
            return self._function(  # pyright: ignore[reportCallIssue]
                input, self.weight, self.bias, self.normalized_shape, self.eps
            )
