"""An evaluation is the same to the last byte at any number of ranks."""

import json

import numpy as np
import pytest
from evaluated import VALIDATION_IMAGES, make_case
from ranks import run_ranks


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp("case")
    case = make_case(root)
    labels = np.random.default_rng(1).integers(0, 3, VALIDATION_IMAGES).tolist()
    real = [[label] if number % 4 else [] for number, label in enumerate(labels)]
    (root / "real.json").write_text(json.dumps(real))
    manifest = json.loads((case.shards / "manifest.json").read_text())
    shard = case.shards / manifest["splits"]["validation"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 40] ^= 255
    shard.write_bytes(content)
    options = ["--data", case.shards, "--real", root / "real.json", "--batch-size", 4]
    return [str(x) for x in (case.export, *options, "--workers", 0, "--device", "cpu")]


@pytest.mark.slow
def test_one_two_and_three_ranks_write_the_same_bytes(arguments, tmp_path):
    written = []
    for size in (1, 2, 3):
        output = tmp_path / str(size)
        codes = run_ranks("cases_evaluate:command", size, *arguments, "--output", str(output))
        assert codes == [0] * size
        written.append([path.read_bytes() for path in sorted(output.iterdir())])
    assert written[0] == written[1] == written[2]
    found = json.loads(written[0][0])["sets"][0]
    assert found["images"] == VALIDATION_IMAGES - 1
    assert found["real"]["images"] < VALIDATION_IMAGES - 1
    assert len(found["bad_samples"]) == 1
