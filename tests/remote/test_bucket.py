"""A set in a bucket: s3fs against a server that speaks S3."""

import importlib.util
import subprocess
import sys
import time
import urllib.request

import pytest
from servers import config_of, free_port, manifest_of

from pretrain.data.cache import ShardCache
from pretrain.data.manifest import check_shards, read_manifest
from pretrain.data.shards import ShardReader
from pretrain.errors import DataError

MISSING = [n for n in ("s3fs", "moto", "flask", "flask_cors") if not importlib.util.find_spec(n)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install -e '.[test]'"
)


@pytest.fixture(scope="module")
def endpoint(published, tmp_path_factory):
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    # Not a script on the path, which another environment may have put there.
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.name
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(endpoint, published, monkeypatch) -> str:
    """The set's URL; credentials and the endpoint come from the environment, as on a cluster."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    upload = (
        "import fsspec, sys\n"
        "files = fsspec.filesystem('s3')\n"
        "files.mkdir('shards') if not files.exists('shards') else None\n"
        "files.put(sys.argv[1] + '/', 'shards/one/', recursive=True)\n"
    )
    subprocess.run([sys.executable, "-c", upload, str(published / "set")], check=True, timeout=120)
    return "s3://shards/one"


def test_a_set_is_read_from_a_bucket(bucket, published, tmp_path):
    data = config_of(bucket, tmp_path / "cache", remote_stall_seconds=30.0)
    manifest = manifest_of(data)
    check_shards(manifest, "train")
    cache = ShardCache(manifest, "train", data)
    reader = ShardReader(cache.root, cache.shards, 3, cache)
    local = ShardReader(published / "set", cache.shards, 3)
    last = manifest.split("train").samples - 1
    assert reader.read(0) == local.read(0)
    assert reader.read(last) == local.read(last)

    # What another process began is continued, and only of the very same object.
    shard = cache.shards[1]
    whole = (published / "set" / shard.file).read_bytes()
    partial = cache.root / f"{shard.file}.{shard.bytes}.partial"
    partial.write_bytes(b"x" * 1000)
    (cache.root / f"{shard.file}.lock").write_text("another")
    cache.fetch(1)
    assert (cache.root / shard.file).read_bytes() == whole


def test_what_is_not_in_the_bucket_is_one_line(bucket, tmp_path):
    with pytest.raises(DataError, match=r"^s3://shards/none/manifest.json: not found; check"):
        read_manifest("s3://shards/none", cache_dir=str(tmp_path))
