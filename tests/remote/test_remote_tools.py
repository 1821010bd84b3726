"""The tools, the launcher's checks and configs on the URL of a set."""

import json
import shutil
import subprocess
import sys
import time

import pytest
from servers import Fault, Proxy

from data_tools.inspect import main as inspect
from data_tools.verify import main as verify
from pretrain.config.load import load_run
from pretrain.errors import ConfigError, DataError
from pretrain.preflight import manifest_if_built, require_manifest

CONFIG = """\
data: {{path: '{url}', cache_dir: {cache}}}
model: {{variant: swin_t, embed_dim: 16, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8],
         image_size: 32, window_size: 4, num_classes: 3}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: 2}}
batch: {{global_size: 16, micro_size_max: 16}}
augment: {{mix_group: 8}}
cluster: {{device: cpu}}
"""


@pytest.fixture
def config(data, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(url=data.path, cache=tmp_path / "cache"))

    def load(*overrides: str):
        return load_run(str(path), overrides)

    return load


def test_inspect_knows_a_url(data, capsys):
    assert inspect([data.path]) == 0
    said = capsys.readouterr().out
    assert f"{data.path}: a shard set, small: 3 classes, train 36 images, validation 12" in said
    assert f"data.path={data.path}" in said


def test_inspect_runs_a_command_only_if_it_may(published, capsys):
    url = f"pipe:cat {published}/set/{{file}}"
    with pytest.raises(DataError, match=r"runs a command for every file; data.allow_pipe=true"):
        inspect([url])
    assert inspect([url, "--allow-pipe"]) == 0
    assert "data.allow_pipe=true" in capsys.readouterr().out


def test_verify_reads_all_of_it(data, proxy, tmp_path, capsys):
    arguments = [data.path, "--cache-dir", str(tmp_path), "--workers", "2", "--decode"]
    assert verify(arguments) == 0
    assert f"{data.path}: whole: " in capsys.readouterr().out
    tars = [name for name in proxy.requests if name.endswith(".tar")]
    assert len(tars) == len({*tars}) >= 4


def test_verify_names_what_is_missing_or_wrong(published, nginx_port, tmp_path, capsys):
    folder = published / "damaged"
    shutil.copytree(published / "set", folder, dirs_exist_ok=True)
    (folder / "small-train-000000.tar").unlink()
    path = folder / "small-train-000001.tar"
    flipped = bytearray(path.read_bytes())
    flipped[3000] ^= 1
    path.write_bytes(flipped)
    (folder / "_info.json").write_text("{}")
    url = f"http://127.0.0.1:{nginx_port}/damaged"
    report = tmp_path / "report.json"
    assert verify([url, "--cache-dir", str(tmp_path), "--report", str(report)]) == 1
    damage = {item["file"]: item["what"] for item in json.loads(report.read_text())["damage"]}
    assert set(damage) == {"small-train-000000.tar", "small-train-000001.tar", "_info.json"}
    assert "404 Not Found" in damage["small-train-000000.tar"]
    assert "wrong bytes" in damage["small-train-000001.tar"]


def test_a_url_stays_as_it_is_and_the_cache_becomes_absolute(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = config("data.cache_dir=here")
    assert loaded.data.path.startswith("http://127.0.0.1:")
    assert loaded.data.cache_dir == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("'pipe:cat {file}'", "data: path: pipe:cat {file}: runs a command for every file"),
        ("https://", "no host; expected https://HOST/FOLDER"),
        ("https://me:secret@host/set", "https://host/set: holds a user or password"),
        ("http://host:port/set", "not a URL"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(config, path, message):
    with pytest.raises(ConfigError) as caught:
        config(f"data.path={path}")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value).replace(path, "")


@pytest.mark.parametrize("path", ["pipe:cat", "pipe:{file}", "pipe:cat 'a {file}", "pipe:"])
def test_a_command_that_cannot_be_meant_is_refused(config, path):
    with pytest.raises(ConfigError, match=r"expected pipe:COMMAND with|split into words"):
        config(f'data.path="{path}"', "data.allow_pipe=true")


def test_a_launch_asks_for_the_manifest_and_four_shards_of_each_split(config, proxy):
    assert manifest_if_built(config()) is not None
    assert set(proxy.requests) == {"manifest.json"}
    manifest = require_manifest(config())
    assert len(manifest.split("train").shards) >= 4
    probed = [name for name in proxy.requests if "train" in name]
    assert len(probed) == 4
    assert manifest.split("train").shards[-1].file in probed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", 404), "set/manifest.json: 404 Not Found; check data.path"),
        (Fault("short", 0), r"the transfer ended after 0 of [\d,]+ bytes; given up"),
        (Fault("wrong"), "manifest.json: damaged, not JSON"),
    ],
)
def test_a_manifest_that_cannot_be_had_is_one_line(config, proxy: Proxy, fault, message):
    proxy.always["manifest.json"] = fault
    started = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        manifest_if_built(config())
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


def test_the_plan_of_a_url(config, tmp_path):
    command = [sys.executable, "-m", "pretrain", "--config", str(tmp_path / "small.yaml"), "--plan"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "36" in answer.stdout
    assert not (tmp_path / "cache").exists()
