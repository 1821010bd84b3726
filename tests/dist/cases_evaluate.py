"""What ranks do in test_evaluate_ranks.py."""

from unittest.mock import patch

from pretrain import dist
from pretrain.evaluate.__main__ import main
from pretrain.world import World


def command(world: World, *arguments: str) -> int:
    """The command, in ranks that have found each other already."""
    with patch.object(dist, "initialize"), patch.object(dist, "shutdown"):
        return main(arguments)
