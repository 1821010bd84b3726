"""Every stage of every builder meets a file system that is really full, and goes on with more."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from image_folders import write_folder

from data_tools import build, index
from data_tools.raw_forms import synsets, write_winter21

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
DRIVER = Path(__file__).with_name("full_disk.py")


@pytest.fixture(scope="module")
def small_disks(tmp_path_factory) -> None:
    probe = tmp_path_factory.mktemp("probe")
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", str(probe)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here, so none can be filled")


def contents(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def filled(tmp_path: Path, tool: str, step: int, arguments: list[str], patch: str = "") -> dict:
    """The driver's answer; what it wrote to standard error must be nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"import runpy\n{patch}\nrunpy.run_path({str(DRIVER)!r}, run_name='__main__')"
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", code, str(disk), tool, str(step), *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads((tmp_path / "answer.json").read_text())


def check(answer: dict) -> list[dict]:
    """What holds of every attempt; returns those that failed."""
    *failed, last = answer["attempts"]
    assert last["said"] is None
    assert failed
    for attempt in failed:
        assert attempt["said"].count("\n") == 0
        assert ": cannot be written: No space left on device" in attempt["said"]
        assert not any(name.startswith("set/") for name in attempt["left"])
    for attempt in answer["attempts"]:
        # Finished work is never written again, and stays until everything is.
        for name, state in attempt["finished"].items():
            assert attempt["said"] is None or attempt["kept"].get(name) == state
    assert {name.partition("/")[0] for name in last["left"]} == {"set"}
    return failed


@pytest.mark.parametrize("workers", ["1", "2"])
def test_shards_indices_and_manifest(small_disks, tmp_path, workers):
    source = write_folder(tmp_path / "images")
    options = ["--name", "tiny", "--shard-mib", "0.02", "--workers", workers]
    assert build.main(["imagefolder", str(source), str(tmp_path / "whole"), *options]) == 0
    arguments = ["imagefolder", str(source), str(tmp_path / "disk" / "set"), *options]
    answer = filled(tmp_path, "build", 4096, arguments)
    failed = check(answer)
    assert answer["digests"] == contents(tmp_path / "whole")
    shards = sum(name.endswith(".tar") for name in answer["digests"])
    finished = [len(attempt["kept"]) for attempt in failed]
    assert finished == sorted(finished)
    assert finished.count(shards) > 0, "the manifest was never refused"
    assert all("same command continues" in a["said"] for a in failed if len(a["kept"]) < shards)


def test_spool_and_listing(small_disks, tmp_path):
    write_winter21(tmp_path / "a.tar.gz", synsets(6, seed=0, classes=3))
    options = ["--shard-mib", "0.03", "--workers", "1"]
    arguments = ["imagenet22k", str(tmp_path / "a.tar.gz")]
    assert build.main([*arguments, str(tmp_path / "whole"), *options]) == 0
    patch = "from data_tools import spool; spool._SPOOL_FILE_BYTES = 20_000"
    arguments += [str(tmp_path / "disk" / "set"), *options]
    answer = filled(tmp_path, "build", 4096, arguments, patch)
    failed = check(answer)
    assert answer["digests"] == contents(tmp_path / "whole")
    said = {attempt["said"].partition(":")[0].rpartition("/")[2] for attempt in failed}
    assert said == {".set.spool", ".set.partial"}
    spooled = [sum("spool" in name for name in attempt["kept"]) for attempt in failed]
    assert spooled == sorted(spooled)
    assert spooled[-1] > 3


def test_indices_of_foreign_shards(small_disks, tmp_path):
    source = write_folder(tmp_path / "images")
    options = ["--name", "tiny", "--shard-mib", "0.02", "--workers", "1"]
    assert build.main(["imagefolder", str(source), str(tmp_path / "shards"), *options]) == 0
    (tmp_path / "classes.txt").write_text("n01\nn02\nn03\n")
    arguments = [str(tmp_path / "shards"), str(tmp_path / "disk" / "set"), "--name", "x"]
    arguments += ["--classes", str(tmp_path / "classes.txt"), "--workers", "1"]
    answer = filled(tmp_path, "index", 4096, arguments)
    failed = check(answer)
    assert all(attempt["left"] == [] for attempt in failed)
    assert index.main([*arguments[:1], str(tmp_path / "whole"), *arguments[2:]]) == 0
    assert answer["digests"].keys() == contents(tmp_path / "whole").keys()


def test_miniatures(small_disks, tmp_path):
    arguments = [str(tmp_path / "disk" / "set"), "--raw"]
    patch = "from data_tools import synthetic; synthetic._RAW_IMAGES_PER_CLASS = 4"
    failed = check(filled(tmp_path, "synthetic", 2**23, arguments, patch))
    assert all(attempt["left"] == [] for attempt in failed)


def test_a_full_disk_ends_with_one_line_and_code_2(small_disks, tmp_path):
    source = write_folder(tmp_path / "images")
    (tmp_path / "disk").mkdir()
    script = (
        f"mount -t tmpfs -o size=16k tmpfs {tmp_path}/disk && {sys.executable} -m data_tools.build"
        f" imagefolder {source} {tmp_path}/disk/set --name x --shard-mib 0.02"
    )
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"error: {tmp_path}/disk/.set.partial: cannot be written: No space left on device; make "
        "room there, then the same command continues\n"
    )
