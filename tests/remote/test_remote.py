"""One file from a server: whatever breaks, the right bytes come in the end, or one clear line."""

import hashlib
import importlib.util
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from servers import Fault, free_port, nginx

from pretrain.data.remote import Patience, download, probe, read_bytes
from pretrain.errors import DataError
from pretrain.location import RemoteFile

PATIENCE = Patience(stall_seconds=1.0, retry_seconds=1.5)
BYTES = 300_000


@pytest.fixture(scope="module")
def content(published) -> bytes:
    data = os.urandom(BYTES)
    for folder in (published, published / "private", published / "forbidden"):
        folder.mkdir(exist_ok=True)
        (folder / "some.tar").write_bytes(data)
    return data


class Target:
    """Where a test downloads to."""

    def __init__(self, folder: Path, base: str, content: bytes):
        self.file = RemoteFile(base, "some.tar")
        self.partial = folder / "some.partial"
        self.note = folder / "some.note"
        self.note.write_text("")
        self.partial.unlink(missing_ok=True)
        self.content = content

    def download(self, patience: Patience = PATIENCE) -> None:
        sha256 = hashlib.sha256(self.content).hexdigest()
        started = time.monotonic()
        try:
            download(
                self.file, self.partial, self.note, size=BYTES, sha256=sha256, patience=patience
            )
        finally:
            # The deadline of the whole file; a machine may be slow, but nothing hangs.
            assert time.monotonic() - started < patience.total_seconds(BYTES) + 20
        assert self.partial.read_bytes() == self.content


@pytest.fixture
def target(proxy, content, tmp_path) -> Target:
    return Target(tmp_path, f"http://127.0.0.1:{proxy.port}", content)


def ranges(proxy) -> list[str | None]:
    return [asked for asked, _ in proxy.requests["some.tar"]]


def test_a_file_comes_in_one_request(target, proxy):
    target.download()
    assert ranges(proxy) == [None]


@pytest.mark.parametrize("kind", ["reset", "short", "stall"])
def test_a_broken_transfer_goes_on_where_it_broke(target, proxy, kind):
    proxy.faults["some.tar"] = [Fault(kind, 100_000), Fault(kind, 50_000)]
    target.download()
    assert ranges(proxy) == [None, "bytes=100000-", "bytes=150000-"]
    etag = proxy.requests["some.tar"][1][1]
    assert etag is not None
    assert etag == target.note.read_text()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_failing_server_is_tried_again(target, proxy, status):
    proxy.faults["some.tar"] = [Fault("status", status)] * 3
    target.download()
    assert ranges(proxy) == [None] * 4


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_final(target, proxy, status):
    proxy.always["some.tar"] = Fault("status", status)
    with pytest.raises(DataError, match=rf"/some.tar: {status} .*; check data.path"):
        target.download()
    assert ranges(proxy) == [None]


def test_a_server_that_stays_broken_is_given_up(target, proxy):
    proxy.always["some.tar"] = Fault("status", 503)
    with pytest.raises(DataError, match=r"503 Service Unavailable; given up after \d+ tries in"):
        target.download()
    assert len(ranges(proxy)) > 2


def test_a_server_that_says_nothing_is_given_up(target, proxy):
    proxy.always["some.tar"] = Fault("stall", 0)
    with pytest.raises(DataError, match=r"no (answer in time|byte came for 1 s); given up after"):
        target.download()


def test_a_file_that_trickles_has_a_deadline(target, proxy):
    proxy.always["some.tar"] = Fault("short", 1000)  # always something new, never enough
    slow = Patience(0.5, 0.5, least_bytes_per_second=BYTES)
    with pytest.raises(DataError, match=r"given up after \d+ tries in \d s with [\d,]+ of 300,000"):
        target.download(slow)


def test_nobody_listening_is_given_up(content, tmp_path):
    target = Target(tmp_path, f"http://127.0.0.1:{free_port()}", content)
    with pytest.raises(DataError, match=r"Connection refused; given up"):
        target.download()


def test_a_connection_that_is_never_accepted_is_given_up(content, tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fills = [socket.socket() for _ in range(4)]
        for fill in fills:
            fill.setblocking(False)
            fill.connect_ex(("127.0.0.1", port))
        target = Target(tmp_path, f"http://127.0.0.1:{port}", content)
        with pytest.raises(DataError, match=r"(no answer in time|no byte came for).*given up"):
            target.download()
        for fill in fills:
            fill.close()


def test_a_host_that_does_not_exist_is_final(content, tmp_path):
    target = Target(tmp_path, "http://no-such-host.invalid", content)
    with pytest.raises(DataError, match=r"host cannot be found|name resolution"):
        target.download()


def test_a_server_without_ranges_is_read_from_the_start_again(target, proxy):
    proxy.faults["some.tar"] = [Fault("reset", 100_000), Fault("ignore_range")]
    target.download()
    assert ranges(proxy) == [None, "bytes=100000-"]


def test_a_file_that_changes_meanwhile_is_read_from_the_start_again(target, proxy):
    proxy.faults["some.tar"] = [Fault("older", 100_000)]
    target.download()
    assert proxy.requests["some.tar"] == [(None, None), ("bytes=100000-", '"older"')]


def test_wrong_bytes_are_fetched_once_more(target, proxy):
    proxy.faults["some.tar"] = [Fault("wrong")]
    target.download()
    assert ranges(proxy) == [None, None]


def test_wrong_bytes_twice_are_refused(target, proxy):
    proxy.always["some.tar"] = Fault("wrong")
    with pytest.raises(DataError, match=r"wrong bytes, also when fetched again: its sha256 is"):
        target.download()
    assert ranges(proxy) == [None, None]
    assert target.partial.read_bytes() == b""


def test_a_file_of_another_size_is_refused(target):
    target.content += b"more"
    with pytest.raises(DataError, match=r"300,000 bytes, the manifest says 300,004"):
        download(
            target.file,
            target.partial,
            target.note,
            size=BYTES + 4,
            sha256=hashlib.sha256(target.content).hexdigest(),
            patience=PATIENCE,
        )


def test_what_an_earlier_process_left_is_used_if_it_is_of_the_same_file(target, proxy):
    target.download()  # leaves the entity tag
    target.partial.write_bytes(target.content[:200_000])
    target.download()
    assert ranges(proxy) == [None, "bytes=200000-"]
    proxy.requests.clear()
    target.partial.write_bytes(target.content[:200_000])
    target.note.write_text("")
    target.download()
    assert ranges(proxy) == ["bytes=200000-", None]


@pytest.mark.parametrize("left", [BYTES, BYTES + 1])
def test_wrong_bytes_of_an_earlier_process_are_replaced(target, left):
    target.partial.write_bytes(b"x" * left)
    target.download()


def test_a_small_file_is_read_into_memory(target, proxy, content):
    proxy.faults["some.tar"] = [Fault("reset", 100_000)]
    assert read_bytes(target.file, BYTES, PATIENCE) == content
    with pytest.raises(DataError, match="more than the 299,999 bytes expected"):
        read_bytes(target.file, BYTES - 1, PATIENCE)


def test_a_probe_fetches_nothing(target, proxy):
    assert probe(target.file, BYTES, PATIENCE) is None
    assert "300,000 bytes, the manifest says 7; upload" in str(probe(target.file, 7, PATIENCE))
    proxy.faults["some.tar"] = [Fault("status", 404)]
    assert "404 Not Found" in str(probe(target.file, BYTES, PATIENCE))
    proxy.always["some.tar"] = Fault("reset", 1000)
    assert probe(target.file, BYTES, PATIENCE) is None  # the answer is there, the rest is not asked


def test_nginx_itself_and_what_it_refuses(nginx_port, content, tmp_path, monkeypatch):
    base = f"http://127.0.0.1:{nginx_port}"
    Target(tmp_path, base, content).download()
    with pytest.raises(DataError, match=r"some.tar: 403 Forbidden; check"):
        Target(tmp_path, f"{base}/forbidden", content).download()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"some.tar: 401 Unauthorized; check"):
        Target(tmp_path, f"{base}/private", content).download()
    login = tmp_path / ".netrc"
    login.write_text("machine 127.0.0.1 login reader password secret\n")
    login.chmod(0o600)
    Target(tmp_path, f"{base}/private", content).download()


def test_certificates_are_checked(published, content, tmp_path, monkeypatch):
    run = tmp_path / "tls"
    run.mkdir()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(run / "key.pem"), "-out", str(run / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    with nginx(published, run, tls=True) as port:
        target = Target(tmp_path, f"https://localhost:{port}", content)
        with pytest.raises(DataError, match=r"certificate is not trusted: .*SSL_CERT_FILE=FILE"):
            target.download()
        monkeypatch.setenv("SSL_CERT_FILE", str(run / "cert.pem"))
        target.download()


def test_a_command_is_run_without_a_shell(content, tmp_path):
    (tmp_path / "some.tar").write_bytes(content)
    target = Target(tmp_path, f"pipe:cat '{tmp_path}/{{file}}'", content)
    target.download()
    assert str(target.file) == f"pipe:cat '{tmp_path}/some.tar'"
    injected = Target(tmp_path, f"pipe:echo {{file}} ; touch {tmp_path}/made", content)
    with pytest.raises(DataError, match=r"the transfer ended after|more than|its sha256 is"):
        injected.download()
    assert not (tmp_path / "made").exists()


def test_a_command_that_fails_is_tried_again_and_given_up(content, tmp_path):
    script = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit('no such bucket')"
    target = Target(tmp_path, f'pipe:python3 -c "{script}" {tmp_path}/runs {{file}}', content)
    with pytest.raises(DataError, match="ended with code 1: no such bucket; given up after 3"):
        target.download(Patience(5.0, 5.0))
    assert (tmp_path / "runs").read_text() == "xxx"


def test_a_command_that_hangs_is_ended(content, tmp_path):
    target = Target(tmp_path, "pipe:python3 -c 'import time; time.sleep(60)' {file}", content)
    with pytest.raises(DataError, match=r"no byte came for 1 s; given up"):
        target.download()


def test_a_command_that_is_not_there_is_final(content, tmp_path):
    target = Target(tmp_path, "pipe:no-such-command {file}", content)
    with pytest.raises(DataError, match="cannot run no-such-command: No such file"):
        target.download()


def test_any_file_system_of_fsspec_will_do(content, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "some.tar").write_bytes(content)
    target = Target(tmp_path, f"file://{folder}", content)
    target.download()
    (folder / "some.tar").unlink()
    target.partial.unlink()
    with pytest.raises(DataError, match=r"some.tar: not found; check data.path"):
        target.download()


def test_an_unknown_protocol_is_final(content, tmp_path):
    with pytest.raises(DataError, match="Protocol not known: gopher"):
        Target(tmp_path, "gopher://host/set", content).download()


def test_a_missing_package_is_named(content, tmp_path):
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(DataError, match="Please install gcsfs to access Google Storage"):
        Target(tmp_path, "gs://bucket/set", content).download()
