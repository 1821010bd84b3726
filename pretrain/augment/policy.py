"""What a RandAugment line such as ``rand-m9-mstd0.5-inc1`` says. Imports no torch."""

import re
from dataclasses import dataclass

from pretrain.errors import ConfigError

_PART = re.compile(r"([a-z]+)(\d+(?:\.\d+)?)")
_KEYS = ("m", "n", "p", "mstd", "inc")


@dataclass(frozen=True)
class RandAugmentPolicy:
    """RandAugment (arXiv 1909.13719) as timm extends it, over the increasing set of operations."""

    level: int = 10
    """Mean level of an operation, 0 to 10."""
    level_std: float = 0.0
    """Standard deviation of the level, which is drawn anew for each operation and clipped to 0
    and 10."""
    layers: int = 2
    """Operations drawn per image, with replacement."""
    probability: float = 0.5
    """Chance that a drawn operation is applied."""


def parse_policy(text: str) -> RandAugmentPolicy:
    """Read timm's notation: ``rand``, then parts in any order, joined by dashes.

    ``mN`` level (10 when absent), ``mstdX`` its deviation (0), ``nN`` operations per image (2),
    ``pX`` chance of each (0.5), ``inc1`` the increasing set of operations, the only one there is.

    Example:
        >>> parse_policy("rand-m9-mstd0.5-inc1")
        RandAugmentPolicy(level=9, level_std=0.5, layers=2, probability=0.5)

    Raises:
        ConfigError: A part is unknown, repeated, out of range, or ``inc1`` is missing.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise _refusal(text, f"must begin with 'rand', got {head!r}")
    values: dict[str, str] = {}
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None or match[1] not in _KEYS:
            raise _refusal(text, f"unknown part {part!r}")
        if match[1] in values:
            raise _refusal(text, f"{match[1]!r} is given twice")
        values[match[1]] = match[2]
    if values.get("inc") != "1":
        raise _refusal(text, "'inc1' is needed: only the increasing operations are built")
    return RandAugmentPolicy(
        level=_whole(text, values, "m", default=10, low=0, high=10),
        level_std=_number(text, values, "mstd", default=0.0, high=100.0),
        layers=_whole(text, values, "n", default=2, low=1, high=15),
        probability=_number(text, values, "p", default=0.5, high=1.0),
    )


def _refusal(text: str, problem: str) -> ConfigError:
    return ConfigError(
        f"augment.randaugment: {problem} in {text!r}; expected parts mN, mstdX, nN, pX and inc1, "
        "such as rand-m9-mstd0.5-inc1"
    )


def _whole(
    text: str, values: dict[str, str], key: str, *, default: int, low: int, high: int
) -> int:
    value = values.get(key, str(default))
    if not value.isdigit() or not low <= int(value) <= high:
        raise _refusal(text, f"{key!r} must be a whole number from {low} to {high}, got {value}")
    return int(value)


def _number(text: str, values: dict[str, str], key: str, *, default: float, high: float) -> float:
    value = float(values.get(key, default))
    if value > high:
        raise _refusal(text, f"{key!r} must be at most {high:g}, got {value:g}")
    return value
