"""What ranks do in test_refusals_ranks.py."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from pretrain import dist
from pretrain.errors import DataError, ModelError, PretrainError
from pretrain.initial_weights import load_initial_weights
from pretrain.world import World


def refuse(world: World, texts: list[list[str | None]], weights: str) -> list[list[str]]:
    """What each rank says where some refuse, several times; last of unreadable initial weights."""
    said = []
    for of_ranks in texts:
        text = of_ranks[world.rank]
        try:
            with dist.refusing_together():
                if text is not None:
                    raise DataError(text)
            said.append(["went on"])
        except PretrainError as error:
            said.append([type(error).__name__, str(error)])
    fields = ("classes", "weights", "image_size", "window_size")
    config = SimpleNamespace(init_from=weights, **{f"init_{name}": None for name in fields})
    job: Any = SimpleNamespace(config=config, world=world, manifest=SimpleNamespace(classes=()))
    try:
        load_initial_weights(job, MagicMock(), MagicMock())
    except ModelError as error:
        said.append([str(error)])
    return said
