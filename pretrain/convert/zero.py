"""Weights of a DeepSpeed ZeRO checkpoint, without DeepSpeed and without running its pickles.

A directory has one folder per save, named in ``latest``; a folder has a file of model states (one
per rank in stage 3) and a file of optimizer states per rank, whose flat fp32 pieces are the
weights. The layout of the pieces is as DeepSpeed 0.19 writes it (``utils/zero_to_fp32.py``).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.convert.pickles import load_pickled
from pretrain.convert.sources import ZERO_LATEST, ZERO_STATES
from pretrain.errors import CheckpointError, ModelError

_OPTIM_STATES = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_ALIGNMENT = 2
"""Stages 1 and 2 pad a group to a multiple of this many elements per rank."""


def read_zero(directory: Path) -> tuple[dict[str, Tensor], str]:
    """Read the full weights: fp32 where the optimizer's are there, else as the model had them.

    Args:
        directory: what ``save_checkpoint`` was given, or one folder in it.

    Returns:
        Tensors by parameter name, and a sentence on what was read.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit the others.
        ModelError: a pickle would run code, or the model is split over tensor-parallel ranks.
    """
    folder = _folder(directory)
    model_files = sorted(folder.glob(ZERO_STATES))
    if any("mp_rank_00_" not in path.name for path in model_files):
        raise ModelError(f"{folder}: split over model-parallel ranks, which is not read here")
    model_path = next((p for p in model_files if p.name.startswith("mp_rank")), model_files[0])
    states = _dict(load_pickled(model_path), model_path)
    optim_files = _optim_files(folder)
    if not optim_files:
        if model_path.name.startswith("zero_pp_rank"):
            raise CheckpointError(f"{folder}: stage 3 without its *_optim_states.pt; copy them too")
        module = _dict(states.get("module"), model_path)
        tensors = {name: value for name, value in module.items() if isinstance(value, Tensor)}
        return tensors, f"{folder.name}: no optimizer states, weights as the model had them"
    ranks = [
        _dict(_dict(load_pickled(path), path).get("optimizer_state_dict"), path)
        for path in optim_files
    ]
    try:
        # The stage itself is an object of DeepSpeed's, which is not looked up.
        sharded = "fp32_flat_groups" in ranks[0]
        _check_ranks(ranks[0]["partition_count"], len(ranks), folder)
        shapes = [dict(group) for group in states["param_shapes"]]
        merged = _stage_3(ranks, shapes) if sharded else _stages_1_2(ranks, shapes)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{folder}: its pieces do not fit together ({reason})") from None
    stage = "3" if sharded else "1 or 2"
    return merged, f"{folder.name}: ZeRO stage {stage} of {len(ranks)} ranks, fp32 weights"


def _folder(directory: Path) -> Path:
    if next(directory.glob(ZERO_STATES), None) is not None:
        return directory
    tag = (directory / ZERO_LATEST).read_text(encoding="utf-8", errors="replace").strip()
    folder = directory / tag
    if not tag or folder.parent != directory or not folder.is_dir():
        saved = sorted(path.parent.name for path in directory.glob(f"*/{ZERO_STATES}"))
        raise CheckpointError(
            f"{directory / ZERO_LATEST}: names {tag!r}, which is not there; name one of "
            f"{', '.join(sorted(set(saved))[:6])} yourself"
        )
    if next(folder.glob(ZERO_STATES), None) is None:
        raise CheckpointError(f"{folder}: holds no {ZERO_STATES}; the save is not complete")
    return folder


def _optim_files(folder: Path) -> list[Path]:
    by_rank: dict[int, Path] = {}
    for path in folder.glob("*_optim_states.pt"):
        match = _OPTIM_STATES.fullmatch(path.name)
        if match is None:
            raise ModelError(f"{path}: not a name that ZeRO's optimizer states have")
        by_rank[int(match[1])] = path
    return [by_rank[rank] for rank in sorted(by_rank)]


def _check_ranks(partition_count: Any, found: int, folder: Path) -> None:
    expected = max(partition_count) if isinstance(partition_count, list) else int(partition_count)
    if expected != found:
        raise CheckpointError(
            f"{folder}: expected the optimizer states of {expected} ranks, got {found}; copy all"
        )


def _stages_1_2(
    ranks: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Each group is one flat vector, cut into equal pieces over the ranks."""
    merged: dict[str, Tensor] = {}
    pieces = [rank["single_partition_of_fp32_groups"] for rank in ranks]
    paddings = ranks[0].get("param_alignment_paddings")
    for index, shapes in enumerate(groups):
        flat = torch.cat([rank[index] for rank in pieces])
        gaps = paddings[index] if paddings is not None else [0] * len(shapes)
        offset = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            count = math.prod(shape)
            merged[name] = flat.narrow(0, offset, count).view(tuple(shape)).clone()
            offset += count + gap
        align = _ALIGNMENT * len(ranks)
        if math.ceil(offset / align) != math.ceil(flat.numel() / align):
            raise ValueError(
                f"group {index}: {offset} elements are named, {flat.numel()} are there"
            )
    return merged


def _stage_3(
    ranks: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Each parameter is cut into equal pieces over the ranks; a rank's pieces follow each other."""
    merged: dict[str, Tensor] = {}
    flats = [torch.cat(list(rank["fp32_flat_groups"])) for rank in ranks]
    offset = 0
    for name, shape in (item for group in groups for item in group.items()):
        count = math.prod(shape)
        piece = math.ceil(count / len(ranks))
        joined = torch.cat([flat.narrow(0, offset, piece) for flat in flats])
        merged[name] = joined.narrow(0, 0, count).view(tuple(shape)).clone()
        offset += piece
    if offset != flats[0].numel():
        raise ValueError(f"{offset} elements a rank are named, {flats[0].numel()} are there")
    return merged


def _dict(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a file of DeepSpeed's, or of another version of it")
    return value
