"""Start a model from another one's weights: other windows, other classes, the same network.

V1's position bias tables are interpolated to another window. V2's bias networks are taken as they
are, with the unit of distance they were trained with. A Swin-MLP's windows cannot change.

Head rows are matched by WordNet id, never by index: at least four class orders of ImageNet-22K are
in use, and a wrong one picks a wrong row without any error.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.config.schema import ModelConfig
from pretrain.errors import ModelError
from pretrain.models.swin import Swin
from pretrain.models.variants import PerStage, shape_of, trained_windows

DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Last parts of the names of buffers that other implementations save; made anew here."""
TABLE = "relative_position_bias_table"
HEAD = ("head.weight", "head.bias")
SPATIAL = ".spatial_mlp."
FAMILIES = {
    "v1": ("Swin V1", "swin_*", f".attn.{TABLE}"),
    "v2": ("Swin V2", "swinv2_*", ".attn.logit_scale"),
    "mlp": ("Swin-MLP", "swin_mlp_*", f"{SPATIAL}weight"),
}
"""Per family: its name, its variants, and how a parameter that only it has ends."""
SHOWN_NAMES = 8


@dataclass(frozen=True)
class TransferReport:
    """What became of the weights.

    Attributes:
        copied: parameters taken as they were; with ``resized`` and the head, all there are.
        resized: position bias tables interpolated to another window.
        dropped: derived buffers of the source that were left out.
        head: "copied" (as it was), "mapped" (rows by class id), "fresh" (zeros), or "left out"
            where the model has none.
        nameless: whether the source has a head but does not say its classes.
        mapped_classes: classes whose row came from the source by id.
        fresh_classes: class ids that start from zeros.
        unused_classes: classes of the source whose row was left out.
        bias_windows: V2: window sides whose offsets are the position bias's unit; else None.
        bias_windows_known: whether the source said that it was trained with these.
    """

    copied: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    head: str
    nameless: bool
    mapped_classes: int
    fresh_classes: tuple[str, ...]
    unused_classes: int
    bias_windows: PerStage | None = None
    bias_windows_known: bool = False

    def lines(self) -> list[str]:
        """The report for people, one sentence a line."""
        said = [f"{len(self.copied)} parameters copied"]
        if self.resized:
            said.append(f"{len(self.resized)} relative position bias tables resized (bicubic)")
        if self.bias_windows is not None:
            windows = " ".join(str(window) for window in self.bias_windows)
            doubt = "" if self.bias_windows_known else "; the source does not say what its own were"
            said.append(f"position bias networks kept, as trained with windows {windows}{doubt}")
        if self.dropped:
            said.append(f"{len(self.dropped)} derived buffers of the source dropped")
        head = f"head {self.head}"
        if self.head == "mapped":
            fresh = f": {_some(self.fresh_classes)}" if self.fresh_classes else ""
            head += (
                f": {self.mapped_classes} classes by id, {len(self.fresh_classes)} from zeros"
                f"{fresh}; {self.unused_classes} of the source unused"
            )
        if self.nameless:
            head += ", from zeros: the source does not say which class each of its rows is"
        elif self.head == "fresh":
            head += ", from zeros: the source has none"
        return [*said, head]


def transfer(
    weights: Mapping[str, Tensor],
    source_classes: Sequence[str] | None,
    model: Swin,
    target_classes: Sequence[str],
    source_model: ModelConfig | None = None,
) -> TransferReport:
    """Copy ``weights`` into ``model``, in place, fitting windows and classes.

    Nothing is copied unless everything fits. Where the source names no classes, the head becomes
    zeros even if its size fits: the order of its rows cannot be known. Any rank, alone: nothing is
    communicated; the model must not yet be in an engine that splits its parameters.

    Args:
        weights: the source's state dict, official names, any floating type, on any device.
        source_classes: class ids in the order of the source's head rows; None if unknown.
        model: the model to fill.
        target_classes: class ids in the order of the model's head rows, if it has a head.
        source_model: the config of the source's network; None if unknown. It says the windows that
            a V2's position bias was trained with, which the weights do not show.

    Raises:
        ModelError: another family's weights; a class list that does not match its head or repeats
            an id; a position bias trained with other windows than the model's config says; or
            parameters that are missing, unexpected, of another shape or not finite: all of them, by
            kind.
    """
    dropped = [name for name in weights if name.rpartition(".")[2] in DERIVED]
    target = dict(model.named_parameters())
    left_out = {*dropped} if model.shape.num_classes else {*dropped, *HEAD}
    target_classes = target_classes if model.shape.num_classes else ()
    source = {name: tensor for name, tensor in weights.items() if name not in left_out}
    has_head = any(name in source for name in HEAD)
    _check_family(source, model)
    _check_fit(source, target, has_head)
    bias_windows = _check_windows(model, source_model)
    _check_classes("target", target_classes, model.shape.num_classes)
    if source_classes is not None and has_head:
        _check_classes("source", source_classes, source["head.weight"].shape[0])

    resized = [
        name for name in source if name.endswith(TABLE) and source[name].shape != target[name].shape
    ]
    copied = [name for name in target if name not in {*resized, *HEAD}]
    head, rows = _plan_head(source, source_classes, target_classes)
    _fill(target, source, resized, rows)
    mapped = sum(row is not None for row in rows) if head == "mapped" else 0
    fresh = [label for label, row in zip(target_classes, rows, strict=True) if row is None]
    return TransferReport(
        copied=tuple(copied),
        resized=tuple(resized),
        dropped=tuple(dropped),
        head=head,
        nameless=has_head and source_classes is None,
        mapped_classes=mapped,
        fresh_classes=tuple(fresh),
        unused_classes=len(source_classes) - mapped if source_classes and head == "mapped" else 0,
        bias_windows=bias_windows,
        bias_windows_known=source_model is not None,
    )


@torch.no_grad()
def _fill(
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    resized: Sequence[str],
    rows: Sequence[int | None],
) -> None:
    """Copy everything, once it is known to fit."""
    for name, parameter in target.items():
        if name in HEAD:
            parameter.copy_(_head_rows(source.get(name), rows, parameter))
        elif name in resized:
            parameter.copy_(resize_bias_table(source[name], _table_side(parameter)))
        else:
            parameter.copy_(source[name])


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Interpolate a bias table [(2M-1)², A] to ``side``² rows, bicubic over its square grid.

    As the official implementation does when the window changes (7 to 12: 13 x 13 to 23 x 23).

    Returns:
        float32 [side², A].
    """
    old_side, heads = _table_side(table), table.shape[1]
    grid = table.detach().float().T.reshape(1, heads, old_side, old_side)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.reshape(heads, side * side).T


def _table_side(table: Tensor) -> int:
    return math.isqrt(table.shape[0])


def _plan_head(
    source: Mapping[str, Tensor],
    source_classes: Sequence[str] | None,
    target_classes: Sequence[str],
) -> tuple[str, list[int | None]]:
    """The head's fate and, for each of the model's classes, the source's row (None for zeros)."""
    if not target_classes:
        return "left out", []
    if "head.weight" not in source or source_classes is None:
        return "fresh", [None] * len(target_classes)
    if list(source_classes) == list(target_classes):
        return "copied", list(range(len(target_classes)))
    row_of = {label: row for row, label in enumerate(source_classes)}
    return "mapped", [row_of.get(label) for label in target_classes]


def _head_rows(source: Tensor | None, rows: Sequence[int | None], like: Tensor) -> Tensor:
    """Rows of a head's weight or bias in the model's order, zeros where there is none."""
    filled = torch.zeros_like(like)
    if source is not None:
        found = [(index, row) for index, row in enumerate(rows) if row is not None]
        into, out_of = [index for index, _ in found], [row for _, row in found]
        filled[into] = source[out_of].to(filled)
    return filled


def _check_classes(which: str, classes: Sequence[str], rows: int) -> None:
    if len(classes) != rows:
        raise ModelError(
            f"{which} classes: got {len(classes)} ids for a head of {rows} rows; "
            "expected one id per row, in the head's order"
        )
    repeated = [label for label, count in Counter(classes).items() if count > 1]
    if repeated:
        raise ModelError(
            f"{which} classes: expected each id once, got more than once: {_some(repeated)}"
        )


def _check_family(source: Mapping[str, Tensor], model: Swin) -> None:
    """Refuse another family's weights by name: listing every parameter would hide the reason."""
    own, variants, _ = FAMILIES[model.shape.family]
    for family, (other, other_variants, ending) in FAMILIES.items():
        found = [name for name in source if name.endswith(ending)]
        if found and family != model.shape.family:
            raise ModelError(
                f"weights: are a {other}'s ({found[0]}), expected a {own}'s, which the model is; "
                f"give one of {other_variants} as model.variant, or weights of {variants}"
            )


def _check_windows(model: Swin, source_model: ModelConfig | None) -> PerStage | None:
    """V2: the windows that give the position bias its unit; refused if not the source's."""
    if model.shape.family != "v2":
        return None
    target = trained_windows(model.shape)
    source = target if source_model is None else trained_windows(shape_of(source_model))
    if source != target:
        raise ModelError(
            f"model.pretrained_window_sizes: the weights' position bias was trained with windows "
            f"of {list(source)} tokens, got {list(target)} (the model's own where it names none); "
            f"give model.pretrained_window_sizes={list(source)}"
        )
    return target


def _check_fit(source: Mapping[str, Tensor], target: Mapping[str, Tensor], has_head: bool) -> None:
    """Refuse weights that are not this network's, naming everything that does not fit."""
    shared = [name for name in target if name in source]
    problems = {
        "missing": [
            name for name in target if name not in source and (has_head or name not in HEAD)
        ],
        "unexpected": [name for name in source if name not in target],
        "of another shape": [
            f"{name} (got {_shape(source[name])}, expected {_shape(target[name])})"
            for name in shared
            if not _fits(name, source[name], target[name])
        ]
        + _uneven_head(source),
        "not finite": [name for name in shared if not bool(torch.isfinite(source[name]).all())],
    }
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if any(SPATIAL in name for name in problems["of another shape"]):
        found.append("a Swin-MLP's weights fit one window only: keep the source's image and window")
    if found:
        raise ModelError(
            "weights: do not fit the model; expected the official Swin names and this variant's "
            "shapes, got\n" + "\n".join(f"  {line}" for line in found)
        )


def _fits(name: str, source: Tensor, target: Tensor) -> bool:
    """Whether a tensor can become the parameter: bias tables may be resized, head rows picked."""
    if name in HEAD:
        return source.ndim == target.ndim and source.shape[1:] == target.shape[1:]
    if name.endswith(TABLE) and source.ndim == 2:
        side = _table_side(source)
        return side**2 == source.shape[0] and side % 2 == 1 and source.shape[1] == target.shape[1]
    return source.shape == target.shape


def _uneven_head(source: Mapping[str, Tensor]) -> list[str]:
    if not all(name in source for name in HEAD):
        return []
    rows, biases = (len(source[name]) if source[name].ndim else 0 for name in HEAD)
    return [f"head (got {rows} rows of weights and {biases} biases)"] if rows != biases else []


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _some(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
