"""LAMB on ZeRO's flat shards, with the trust ratio of each whole parameter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as torch_dist
from torch import Tensor


class Fragment(Protocol):
    """A run of one parameter's elements in a flat tensor of this rank's."""

    @property
    def name(self) -> str:
        """Name of the parameter."""
        ...

    @property
    def flat(self) -> Tensor:
        """The flat tensor of fp32 master weights."""
        ...

    @property
    def offset(self) -> int:
        """First element in it."""
        ...

    @property
    def count(self) -> int:
        """Number of elements."""
        ...


@dataclass(frozen=True)
class _Rule:
    """How one parameter is updated: its place in the vector of norms, and its own factors."""

    index: int
    weight_decay: float
    lr_scale: float
    adapts: bool


@dataclass(frozen=True)
class _Shard:
    """The fragments of one flat, with what belongs to each of them in the same order."""

    spans: list[tuple[int, int]]
    weight_decays: list[float]
    indices: Tensor  # int64 [fragments], of the parameters
    lr_scales: Tensor  # fp32 [fragments]
    adapts: Tensor  # bool [parameters], of all


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., arXiv 1904.00962, algorithm 2), for master weights cut into shards.

    The variant, which is the authors' code's and NVIDIA's: both moments are bias-corrected; decay
    is added to the update before its norm is taken; the norm of a parameter's weights enters as it
    is (φ is the identity, no bounds); the ratio is 1 where either norm is 0, and for parameters
    without weight decay (norms, biases, position tables), which are updated as AdamW would.

    ZeRO's flats know no parameters, so decay and rate are applied per fragment: all parameters form
    one group. Each rank adds up the squares of its fragments; one sum over ranks per step then
    makes the norms whole. Every rank calls `step`, as often.

    Args:
        groups: of `parameter_groups`, whose parameters are joined into one group.
        lr: learning rate until the engine sets one.
        betas: the moments' decay rates.
        eps: the denominator's offset, 1e-6 in the paper.
    """

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        self._rules: dict[str, _Rule] = {}
        parameters = []
        for group in groups:
            for name in group["parameter_names"]:
                self._rules[name] = _Rule(
                    len(self._rules), group["weight_decay"], group["lr_scale"], group["decayed"]
                )
            parameters += group["params"]
        self._shards: dict[int, _Shard] = {}
        self._process_group: torch_dist.ProcessGroup | None = None
        whole = {"params": parameters, "lr_scale": 1.0, "name": "all"}
        super().__init__([whole], {"lr": lr, "betas": betas, "eps": eps})

    def attach(
        self,
        fragments: Sequence[Fragment],
        flats: Sequence[Tensor],
        process_group: torch_dist.ProcessGroup,
    ) -> None:
        """Learn what lies where, once ZeRO has cut the parameters. Any rank, before `step`.

        Args:
            fragments: everything this rank owns.
            flats: the tensors that they lie in.
            process_group: all ranks, able to sum tensors where the flats are.
        """
        self._process_group = process_group
        for flat in flats:
            own = [item for item in fragments if item.flat.data_ptr() == flat.data_ptr()]
            rules = [self._rules[item.name] for item in own]
            everyone = [rule.adapts for rule in self._rules.values()]
            self._shards[flat.data_ptr()] = _Shard(
                spans=[(item.offset, item.count) for item in own],
                weight_decays=[rule.weight_decay for rule in rules],
                indices=torch.tensor([rule.index for rule in rules], device=flat.device),
                lr_scales=torch.tensor([rule.lr_scale for rule in rules], device=flat.device),
                adapts=torch.tensor(everyone, device=flat.device),
            )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the flats from their gradients, which are used up. Every rank."""
        for group in self.param_groups:
            for flat in group["params"]:
                self._step(flat, group)

    def _step(self, flat: Tensor, group: Mapping[str, Any]) -> None:
        shard = self._shards[flat.data_ptr()]
        update = self._adam_direction(flat, group)
        weights = [flat.narrow(0, *span) for span in shard.spans]
        updates = [update.narrow(0, *span) for span in shard.spans]
        for weight, change, decay in zip(weights, updates, shard.weight_decays, strict=True):
            if decay:
                change.add_(weight, alpha=decay)
        ratios = self._trust_ratios(weights, updates, shard)
        if not weights:
            return
        rates = -group["lr"] * shard.lr_scales * ratios[shard.indices]
        for weight, change, rate in zip(weights, updates, rates.unbind(), strict=True):
            weight.addcmul_(change, rate)

    def _adam_direction(self, flat: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Follow the moments; return Adam's direction in the gradient's memory."""
        gradient, state = flat.grad, self.state[flat]
        if gradient is None:
            raise ValueError("lamb: expected a gradient of every shard, got none")
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
            state["exp_avg"] = torch.zeros_like(flat, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(flat, requires_grad=False)
        first, second = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        # In tensors: reading the count would wait for the device.
        seen_first, seen_second = 1 - first ** state["step"], 1 - second ** state["step"]
        divisor = (state["exp_avg_sq"] / seen_second).sqrt_().add_(group["eps"])
        return gradient.copy_(state["exp_avg"]).div_(seen_first).div_(divisor)

    def _trust_ratios(self, weights: list[Tensor], updates: list[Tensor], shard: _Shard) -> Tensor:
        """Norm of each whole parameter over that of its update: fp32 [parameters]. Every rank."""
        count, device = len(self._rules), shard.adapts.device
        squares = torch.zeros(2, count, dtype=torch.float64, device=device)
        if weights:
            for row, tensors in zip(squares, (weights, updates), strict=True):
                norms = torch.stack(_norms(tensors))
                row.index_add_(0, shard.indices, norms.double().square())
        torch_dist.all_reduce(squares, group=self._process_group)
        weight_norms, update_norms = squares.sqrt()
        fit = shard.adapts & (weight_norms > 0) & (update_norms > 0)
        return torch.where(fit, weight_norms / update_norms, 1.0).float()


def _norms(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """L2 norm of each, in one call to the device."""
    return tuple(torch._foreach_norm(tensors))  # pyright: ignore[reportPrivateImportUsage]
