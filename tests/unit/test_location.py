from pathlib import Path

import pytest

from pretrain.location import (
    RemoteFile,
    cache_directory,
    fault_of,
    is_remote,
    set_directory,
    shown,
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("https://host/dir", True),
        ("s3://bucket/prefix", True),
        ("pipe:cat {file}", True),
        ("file:///shards", True),
        ("shards/https", False),
        ("/shards", False),
        (Path("shards"), False),
        ("a:b", False),
    ],
)
def test_urls_are_told_from_directories(where, expected):
    assert is_remote(where) == expected


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://host/dir", "https://host/dir/a%20b%23.tar"),
        ("https://host/dir/", "https://host/dir/a%20b%23.tar"),
        ("https://host", "https://host/a%20b%23.tar"),
        ("https://host/dir?sig=x%2F&v=1", "https://host/dir/a%20b%23.tar?sig=x%2F&v=1"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/a b#.tar"),
    ],
)
def test_files_lie_below_the_path(base, expected):
    assert RemoteFile(base, "a b#.tar").url == expected


def test_a_files_name_is_one_word_of_a_command_at_most():
    file = RemoteFile('pipe:fetch --from "my bucket/{file}" {file}', "a b; rm -r.tar")
    assert file.words == ["fetch", "--from", "my bucket/a b; rm -r.tar", "a b; rm -r.tar"]


def test_secrets_are_not_shown():
    assert shown("https://me:pw@host/dir?sig=secret") == "https://host/dir?…"
    assert str(RemoteFile("https://host/dir?sig=secret", "a.tar")) == "https://host/dir/a.tar?…"
    assert shown("s3://bucket/dir") == "s3://bucket/dir"


def test_every_url_and_every_manifest_has_its_directory():
    cache = Path("/cache")
    names = ["https://a/set", "https://b/set", "https://a/x/set", "s3://a/set", "pipe:cat {file}"]
    found = {set_directory(cache, name, digest) for name in names for digest in ("1", "2")}
    assert len(found) == 2 * len(names)
    assert all(path.parent == cache for path in found)
    assert set_directory(cache, "https://a/set/", "1") == set_directory(cache, "https://a/set", "1")
    assert set_directory(cache, "https://a/..", "1").name.startswith("set-") is False
    assert "/" not in set_directory(cache, "https://a/..", "1").name


def test_the_cache_is_a_directory_of_its_own(monkeypatch, tmp_path):
    assert cache_directory(str(tmp_path)).parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cache_directory(None) == cache_directory(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://host/set", None),
        ("s3://bucket", None),
        ("https:///set", "no host"),
        ("http://[::1/set", "not a URL"),
        ("pipe:cat {file}", "data.allow_pipe"),
    ],
)
def test_faults_are_named(url, fault):
    found = fault_of(url, allow_pipe=False)
    assert found is None if fault is None else fault in str(found)
