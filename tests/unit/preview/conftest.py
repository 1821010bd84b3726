"""One painted shard set for the tests of pictures."""

from pathlib import Path

import pytest
from painted import make_config


@pytest.fixture(scope="session")
def painted(tmp_path_factory) -> Path:
    """A config of six painted classes whose first micro-batch is mixed in every way."""
    return make_config(tmp_path_factory.mktemp("painted"))
