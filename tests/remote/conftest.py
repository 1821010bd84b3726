"""A shard set behind nginx, and behind a proxy that breaks transfers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import Proxy, config_of, nginx

from data_tools.build import main as build
from pretrain.config.schema import DataConfig
from pretrain.data import remote


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Try again soon."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE_SECONDS", 0.05)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """A directory that is served: ``set`` holds three classes in several shards."""
    root = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    images = tmp_path_factory.mktemp("images")
    for split, count in (("train", 12), ("val", 4)):
        for label in range(3):
            folder = images / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.JPEG", quality=95)
    arguments = ["imagefolder", str(images), str(root / "set"), "--name", "small"]
    assert build([*arguments, "--shard-mib", "0.05"]) == 0
    return root


@pytest.fixture(scope="session")
def nginx_port(published, tmp_path_factory) -> Iterator[int]:
    with nginx(published, tmp_path_factory.mktemp("nginx")) as port:
        yield port


@pytest.fixture
def proxy(nginx_port) -> Iterator[Proxy]:
    proxy = Proxy(nginx_port)
    yield proxy
    proxy.close()


@pytest.fixture
def data(proxy, tmp_path) -> DataConfig:
    """The set as it is seen through the proxy."""
    return config_of(f"http://127.0.0.1:{proxy.port}/set", tmp_path / "cache")
