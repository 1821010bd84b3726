"""Small shard sets for the tests of this directory."""

import pytest
from hypothesis import settings
from tiny_shards import build_set

from pretrain.data.manifest import Manifest

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory) -> Manifest:
    """42 training and 15 validation images in several shards; not to be changed."""
    return build_set(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def own_shard_set(tmp_path) -> Manifest:
    """The same, to be damaged."""
    return build_set(tmp_path)
