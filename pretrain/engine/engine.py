"""The training engine: DeepSpeed ZeRO reduces, clips, shards and skips; the rest is torch."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from pretrain.config.engine import EngineConfig, OptimConfig
from pretrain.config.schema import EmaConfig
from pretrain.dist import control_group, gather_objects
from pretrain.engine import ema, runtime, shards
from pretrain.engine.classification import soft_target_cross_entropy
from pretrain.engine.counts import Counts
from pretrain.engine.digest import digest
from pretrain.engine.lamb import Lamb
from pretrain.engine.loss_scale import LossScale
from pretrain.engine.nvidia_apex import use_fused_layer_norms
from pretrain.engine.optimizers import make_optimizer
from pretrain.engine.param_groups import parameter_groups
from pretrain.engine.shapes import check_shapes, shapes_of
from pretrain.engine.step_result import Sample, StepResult
from pretrain.engine.updates import Updates
from pretrain.engine.waits import Waits
from pretrain.engine.zero_config import skips_on_device, zero_config
from pretrain.errors import EngineError
from pretrain.world import World

Which = Literal["raw", "ema"]
"""The weights as they are trained, or their average."""
Values = Tensor | tuple[Tensor, ...]
"""One or more tensors whose first axis is the images of a micro-batch."""


def _nothing() -> None:
    """Do nothing meanwhile."""


class Engine:
    """Trains a model over all ranks. Every rank constructs it and makes every call, in order.

    The weights start from rank zero's model. After `pretrain.dist.initialize`; one engine lives at
    a time.

    Args:
        model: the network, fp32, every parameter trained; it is moved to ``device``.
        engine: ZeRO stage, precision, what is offloaded, and how long ranks wait for each other.
        optim: the optimizer and its numbers, and the clipping norm; the learning rate comes with
            each step.
        micro_batch: images of one forward pass on one rank.
        accumulation: micro-batches of one step on one rank.
        device: where this rank computes.
        world: the place of this rank.
        undecayed: names of the parameters without weight decay.
        depths: layer of every parameter, for layer-wise decay; see `parameter_groups`.
        average: the moving average that is kept beside the weights; None, or one without a decay,
            keeps none.
        loss: from the model's outputs and the targets of a micro-batch to fp32 [B].
        hits: from the same to bool [B], what is counted beside the loss; None counts nothing.
        stages: stage of each parameter by name, from 0, whose updates sampled steps measure.
        around: gives what surrounds each part of a step, which it is told by name: "forward",
            "loss", "backward", "optimizer".

    Raises:
        EngineError: the model has frozen parameters, parameters without a depth where one is
            needed, or names that cannot be saved; or what the config asks for is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: EngineConfig,
        optim: OptimConfig,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        world: World,
        undecayed: Collection[str],
        depths: Mapping[str, int] | None = None,
        average: EmaConfig | None = None,
        loss: Callable[[Tensor, Any], Tensor] = soft_target_cross_entropy,
        hits: Callable[[Tensor, Any], Tensor] | None = None,
        stages: Mapping[str, int] | None = None,
        around: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._world = world
        self._loss = loss
        self._hits = hits
        self._around = around
        self._micro_batch = micro_batch
        self._accumulation = accumulation
        self._device = device
        self._loss_scale: LossScale | None = None
        if engine.precision == "fp16":
            self._loss_scale = LossScale(engine.loss_scale_init, engine.loss_scale_growth_steps)
        self._shapes = shapes_of(model)
        if engine.layer_norm == "apex":
            use_fused_layer_norms(model)
        parameters = dict(model.to(device).named_parameters())
        groups = parameter_groups(
            parameters, optim.weight_decay, undecayed, optim.layer_decay, depths
        )
        deepspeed = runtime.import_deepspeed(device)
        self._group = runtime.set_collective_group(engine.collective_timeout_seconds)
        optimizer = make_optimizer(groups, optim)
        pin_memory = device.type == "cuda"
        self._zero: Any = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=zero_config(engine, optim, micro_batch, accumulation, pin_memory=pin_memory),
        )[0]
        shards.check_known(self._zero)
        shards.check_communication()
        self._skips_on_device = skips_on_device(engine, optim)
        if self._skips_on_device:
            shards.skip_on_device(self._zero)
        flats = shards.flats(self._zero)
        self._counts = Counts(flats[0].device)
        if isinstance(optimizer, Lamb):
            group = self._group if engine.offload == "none" else control_group()
            optimizer.attach(shards.pieces(self._zero), flats, group)
        self._ema: ema.Ema | None = None
        if average is not None and average.decay is not None:
            self._ema = ema.Ema(flats, average)
        self._updates = Updates(shards.pieces(self._zero), stages or {})

    def train_step(
        self,
        micro_batches: Iterable[tuple[Values, Values]],
        lr: float,
        *,
        sampled: bool = False,
        meanwhile: Callable[[], None] = _nothing,
    ) -> StepResult:
        """Take one optimizer step on the mean loss of the global batch. Every rank.

        Exactly ``accumulation`` micro-batches are drawn, each only when the one before it is done:
        what the iterator does between them, such as seeding, happens between the passes.

        Args:
            micro_batches: pairs of what the model takes and what the loss compares its outputs
                with, each a tensor or several, on the device; B is the engine's ``micro_batch``.
                Classification: images, float [B, C, H, W], and targets, float [B, Y] with rows
                that sum to 1.
            lr: learning rate of this step; a group's own is this times its ``lr_scale``.
            sampled: look closer, at the cost of some reading; no bit of training changes.
            meanwhile: called once for each micro-batch when its passes were given to the device,
                which computes them while the caller prepares the next.

        Raises:
            EngineError: too few micro-batches or wrong sizes.
        """
        if not sampled:
            return self._train_step(micro_batches, lr, meanwhile)
        waits = Waits(self._device)
        self._updates.before()
        with shards.collectives_through(waits.around):
            result = self._train_step(micro_batches, lr, meanwhile)
        # On a GPU, stage 3 gathers and reduces on streams of its own, beside the computation.
        beside = self._device.type == "cuda" and self._zero.zero_optimization_stage() == 3
        seconds = None if beside else waits.seconds
        return replace(result, sample=Sample(self._updates.after(), seconds))

    def _train_step(
        self,
        micro_batches: Iterable[tuple[Values, Values]],
        lr: float,
        meanwhile: Callable[[], None],
    ) -> StepResult:
        for group in self._zero.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        scale = None if self._loss_scale is None else self._loss_scale.scale
        if scale is not None:
            shards.set_loss_scale(self._zero, scale)
        self._zero.train()
        loss_sum, hit_sum = torch.zeros(2, dtype=torch.float32, device=self._device)
        drawn = 0
        for inputs, targets in islice(micro_batches, self._accumulation):
            self._check_size(inputs, targets)
            with self._around("forward"):
                outputs = self._zero(*_each(inputs))
            with self._around("loss"):
                losses = self._loss(outputs, targets)
                loss_sum += losses.detach().sum()
                if self._hits is not None:
                    hit_sum += self._hits(outputs.detach(), targets).sum()
                loss = _spoilt_unless_finite(losses.mean())
            with self._around("backward"):
                self._zero.backward(loss)
            meanwhile()
            with self._around("optimizer"):
                self._zero.step()  # changes weights after the last micro-batch only
            drawn += 1
        if drawn < self._accumulation:
            raise EngineError(
                f"train_step: expected {self._accumulation} micro-batches, got {drawn}"
            )
        applied, norm = self._outcome()
        self._counts.add(applied)
        if self._ema is not None:
            with self._around("optimizer"):
                self._ema.update(self._counts.applied, applied)
        hits = None if self._hits is None else hit_sum
        return StepResult(loss_sum, drawn * self._micro_batch, norm, applied, hits, scale)

    def _outcome(self) -> tuple[Tensor, float | Tensor]:
        """Whether the step was applied, and its norm: where the device skips, without waiting."""
        if self._skips_on_device:
            return shards.was_applied(self._zero), self._zero.get_global_grad_norm()
        applied = self._zero.was_step_applied()
        if self._loss_scale is not None:
            self._loss_scale.update(applied)
        norm = self._zero.get_global_grad_norm() if applied else float("inf")
        return torch.full((), applied, device=self._counts.applied.device), norm

    def _check_size(self, inputs: Values, targets: Values) -> None:
        sizes = [len(values) for values in (*_each(inputs), *_each(targets))]
        if set(sizes) != {self._micro_batch}:
            raise EngineError(
                f"train_step: expected {self._micro_batch} images and targets in a micro-batch, "
                f"got {' and '.join(str(size) for size in sizes)}"
            )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the model's outputs in evaluation mode, in the precision of training. Every rank.

        Args:
            images: float [B, C, H, W] on the device, any B.

        Returns:
            fp32 [B, Y].
        """
        self._zero.eval()
        return self._zero(images).float()

    @contextmanager
    def computing_with(self, which: Which) -> Iterator[None]:
        """Let `logits` compute with these weights inside a ``with`` block. Every rank.

        Nothing but `logits` may be called inside. An error leaves the exchange as it is: bringing
        the weights back is a collective, which the other ranks would not join.

        Raises:
            EngineError: the average is asked for and none is kept.
        """
        if which == "raw":
            yield
            return
        average = self._average()
        average.swap()
        shards.refresh_weights(self._zero)
        yield
        average.swap()
        shards.refresh_weights(self._zero)

    def _average(self) -> ema.Ema:
        if self._ema is None:
            raise EngineError("ema.decay: no average is kept; give ema.decay=0.9999")
        return self._ema

    def _kinds(self) -> tuple[str, ...]:
        return shards.KINDS if self._ema is None else (*shards.KINDS, ema.KIND)

    def _values(self, piece: shards.Piece, kind: str) -> Tensor:
        """Return the live elements of a piece: writes reach them."""
        if kind == ema.KIND:
            return self._average().of(piece.flat).narrow(0, piece.offset, piece.count)
        return shards.values(self._zero, piece, kind)

    def weights_digest(self) -> int:
        """Return a digest of what this rank computes with, equal on all ranks. Any rank.

        Of every parameter in ZeRO stages 1 and 2; in stage 3, where most exist in parts only, of
        those it keeps whole; and of the model's buffers. Waits for the device.
        """
        return digest(shards.whole_tensors(self._zero))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full shape of every parameter, by name. Any rank."""
        return dict(self._shapes)

    def fragments(self) -> dict[str, Tensor]:
        """Return this rank's part of the state, copied to the CPU. Any rank.

        Keys are ``kind|parameter name|start``, values flat fp32 tensors: elements ``start`` onwards
        of that parameter flattened. Kinds are ``master``, ``exp_avg``, ``exp_avg_sq`` and, where
        an average is kept, ``ema``. The ranks' parts together hold every element exactly once.
        """
        return {key: live.to("cpu", copy=True) for key, live in self.live_fragments().items()}

    def live_fragments(self) -> dict[str, Tensor]:
        """Return `fragments` uncopied, where training keeps them: the next step changes them."""
        return {
            f"{kind}|{piece.name}|{piece.start}": self._values(piece, kind)
            for piece in shards.pieces(self._zero)
            for kind in self._kinds()
        }

    @torch.no_grad()
    def load_fragments(
        self,
        read: Callable[[str, str, int, int], Tensor],
        optimizer_step: int,
        skipped_steps: int = 0,
        loss_scale: float | None = None,
        loss_scale_good_steps: int = 0,
        saved_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Replace the state by saved values, of any world size and ZeRO stage. Every rank.

        Args:
            read: called as ``read(kind, parameter name, start, count)``, gives flat fp32 [count].
            optimizer_step: steps that were applied before the state was saved.
            skipped_steps: steps that were skipped before the state was saved.
            loss_scale: fp16's factor on the loss when the state was saved; None starts it anew.
            loss_scale_good_steps: finite steps since that factor changed.
            saved_shapes: full shape of every saved parameter, to be held against the model's;
                without it only a saved parameter that is too small is noticed, by ``read``.

        Raises:
            EngineError: the saved parameters are not the model's; nothing was changed.
        """
        if saved_shapes is not None:
            check_shapes(self._shapes, saved_shapes)
        for piece in shards.pieces(self._zero):
            for kind in self._kinds():
                saved = read(kind, piece.name, piece.start, piece.count)
                self._values(piece, kind).copy_(saved)
        shards.set_optimizer_step(self._zero, optimizer_step)
        shards.refresh_weights(self._zero)
        self._counts.load(optimizer_step, skipped_steps)
        if self._loss_scale is not None and loss_scale is not None:
            self._loss_scale.scale = loss_scale
            self._loss_scale.good_steps = loss_scale_good_steps

    def state(self) -> dict[str, Any]:
        """Return the counters `load_fragments` takes back; JSON-able. Any rank.

        Waits for the device.
        """
        state: dict[str, Any] = self._counts.state()
        if self._loss_scale is not None:
            state["loss_scale"] = self._loss_scale.scale
            state["loss_scale_good_steps"] = self._loss_scale.good_steps
        return state

    def full_weights(self, which: Which = "raw") -> dict[str, Tensor]:
        """Return every parameter whole, fp32 on the CPU, on rank zero; {} elsewhere. Every rank.

        Raises:
            EngineError: the average is asked for and none is kept.
        """
        mine = shards.pieces(self._zero)
        kind = ema.KIND if which == "ema" else "master"
        parts = [self._values(piece, kind).cpu() for piece in mine]
        flat = torch.cat(parts) if parts else torch.empty(0)
        layouts = gather_objects([(piece.name, piece.start, piece.count) for piece in mine])
        if self._world.rank != 0:
            torch_dist.send(flat, dst=0, group=control_group())
            return {}
        weights = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        for rank, layout in enumerate(layouts):
            if rank != 0:
                flat = torch.empty(sum(count for _, _, count in layout))
                torch_dist.recv(flat, src=rank, group=control_group())
            counts = [count for _, _, count in layout]
            for (name, start, count), part in zip(layout, flat.split(counts), strict=True):
                weights[name].view(-1)[start : start + count] = part
        return weights

    def close(self) -> None:
        """Free the engine's memory, hooks and process group; nothing works after. Every rank."""
        self._zero.destroy()
        self._zero = self._ema = None
        runtime.release_collective_group(self._group)


def _each(values: Values) -> tuple[Tensor, ...]:
    return values if isinstance(values, tuple) else (values,)


def _spoilt_unless_finite(loss: Tensor) -> Tensor:
    """The loss, with a NaN for its gradient where it is not finite: only gradients are agreed on.

    Without waiting for the device, and to the bit the loss itself where it is finite.
    """
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan)
