"""Finds on a CPU what would make the host wait for a GPU.

Memory that a GPU would hold is marked: parameters, what is sent there, what is made there
(``device=``), and all that is computed from it. A call that needs marked values on the host, or
whose copy a driver makes only after everything before it, is noted with where it came from.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FACTORIES = {
    "empty", "zeros", "ones", "full", "arange", "linspace", "eye", "rand", "randn", "randint",
}  # fmt: skip
"""Fill memory where it is; `torch.tensor` and its like fill it on the host and copy."""
COPYING_FACTORIES = {"tensor", "as_tensor", "asarray"}
TO_PYTHON = {"tolist", "numpy", "cpu", "__array__"}
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip
"""Operators whose result, or its shape, is needed on the host."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_HERE = Path(__file__).parent
_PARENTS = (str(_HERE.parents[1] / "pretrain"), str(_HERE), "deepspeed")


class Storages:
    """A set of tensors' memory; what is freed is forgotten."""

    def __init__(self) -> None:
        self._references: dict[int, StorageWeakRef] = {}

    def add(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._references[reference.cdata] = reference

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._references


class DeviceWaits:
    """Marks and watches while it is entered.

    Attributes:
        found: what would have waited, one line each.
        allowed: the same of the calls that may.
        backward: whether a backward pass is under way.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.allowed: list[str] = []
        self._on_device, self._staged = Storages(), Storages()
        self._watches = False
        self._allows = 0
        self.backward = False
        self._modes = ExitStack()

    def __enter__(self) -> "DeviceWaits":
        self._modes.enter_context(_Calls(self))
        self._modes.enter_context(_Operators(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._modes.close()

    def watch(self) -> None:
        """Note from now on."""
        self._watches = True

    @contextmanager
    def allowing(self) -> Iterator[None]:
        """What waits inside may."""
        self._allows += 1
        try:
            yield
        finally:
            self._allows -= 1

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Hooks run where only operators are seen; what they make is for the device."""
        self.backward = True
        try:
            yield
        finally:
            self.backward = False

    def may_wait(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def allowed(*arguments: Any, **named: Any) -> Any:
            with self.allowing():
                return function(*arguments, **named)

        return allowed

    def mark(self, *tensors: Tensor) -> None:
        """Say that a GPU would hold these."""
        for tensor in tensors:
            self._on_device.add(tensor)

    def stage(self, *tensors: Tensor) -> None:
        """Say that these would be page-locked."""
        for tensor in tensors:
            self._staged.add(tensor)

    def is_marked(self, value: object) -> bool:
        return isinstance(value, Tensor) and value in self._on_device

    def is_staged(self, value: Tensor) -> bool:
        return value in self._staged

    def note(self, what: str) -> None:
        if self._watches:
            (self.allowed if self._allows else self.found).append(f"{what}: {_where()}")


class _Calls(TorchFunctionMode):
    """Sees what Python asks of torch, with the devices that it names."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, waits, name = kwargs or {}, self._waits, getattr(func, "__name__", "")
        if name in TO_PYTHON and waits.is_marked(args[0]):
            waits.note(name)
        if func is torch.Tensor.backward:
            with waits.in_backward():
                return func(*args, **kwargs)
        if func is torch.Tensor.to and not waits.is_marked(args[0]) and _device_in(args, kwargs):
            return self._send(args, kwargs)
        result = func(*args, **kwargs)
        if name in FACTORIES | COPYING_FACTORIES and isinstance(result, Tensor):
            if kwargs.get("device") is not None:
                if name in COPYING_FACTORIES and not waits.is_marked(args[0]):
                    waits.note(f"torch.{name} on the device")
                waits.mark(result)
            elif "pin_memory" in kwargs:
                waits.stage(result)
        return result

    def _send(self, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        source = args[0]
        if not (self._waits.is_staged(source) and kwargs.get("non_blocking")):
            self._waits.note("copy from memory that is not page-locked")
        sent = torch.Tensor.to(*args, **kwargs)
        sent = sent.clone() if sent.data_ptr() == source.data_ptr() else sent
        self._waits.mark(sent)
        return sent


class _Operators(TorchDispatchMode):
    """Sees every operator, those of the backward pass and of C++ too."""

    def __init__(self, waits: DeviceWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, waits = kwargs or {}, self._waits
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marked = any(waits.is_marked(tensor) for tensor in given)
        if marked and (why := self._why(func, args, kwargs)):
            waits.note(why)
        result = func(*args, **kwargs)
        if marked or (waits.backward and not given):
            waits.mark(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result

    def _why(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> str | None:
        """What would be waited for in an operator on marked memory; None for nothing."""
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        is_marked = self._waits.is_marked
        waits = name in WAITING
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            kinds = {index.dtype for index in indices}
            waits = bool(kinds & {torch.bool, torch.uint8}) or not all(map(is_marked, indices))
        elif name in ("masked_fill", "masked_fill_"):
            waits = overload == "Tensor"  # of which torch takes the value on the host
        elif name == "repeat_interleave" and overload == "Tensor":
            waits = kwargs.get("output_size") is None
        elif name == "copy_":
            target, source = args[:2]
            from_host = not is_marked(source) and not self._waits.is_staged(source)
            waits = from_host or not is_marked(target)
        return name if waits else None


def _device_in(args: tuple[Any, ...], kwargs: Any) -> bool:
    return kwargs.get("device") is not None or any(
        isinstance(value, str | torch.device) for value in args[1:]
    )


def _where() -> str:
    """The newest call of ours, or of DeepSpeed's, that led here."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(parent in file for parent in _PARENTS) and file != __file__:
            return f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
