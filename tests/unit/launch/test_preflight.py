"""Refusals that need neither data nor a cluster."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.planning import plan_part
from launch.preflight import check_disk, check_packages, compare_classes, file_system_of
from pretrain.config.load import load_run
from pretrain.data.manifest import Manifest, Shard, Split, write_manifest
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory

MOUNTS = """\
overlay / overlay rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/with\\040blank tmpfs rw 0 0
lustre@tcp:/fs /scratch lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/runs", "nfs4"),
        ("/home/me/with blank/runs", "tmpfs"),
        ("/scratch", "lustre"),
        ("/scratchy", "overlay"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_packages_are_compared_with_what_the_source_needs(tmp_path: Path) -> None:
    check_packages()
    (tmp_path / "pyproject.toml").write_text(
        "[project]\ndependencies = ['pydantic>=99', 'no-such-thing>=1', 'numpy',\n"
        "'other-thing; python_version < \"3\"']\n"
    )
    with pytest.raises(LaunchError) as caught:
        check_packages(tmp_path)
    message = str(caught.value)
    assert "pydantic is 2" in message
    assert "(expected >=99); no-such-thing is missing (expected >=1); run: pip install" in message
    assert "other-thing" not in message


def test_a_run_that_does_not_fit_the_disk_is_refused(tmp_path: Path) -> None:
    part = plan_part(load_run("swin_l_22k", [f"runs_dir={tmp_path}"], cluster="slurm"))
    size = part.plan.checkpoint_bytes
    enough = 4 * size
    check_disk(replace(part, plan=replace(part.plan, free_disk_bytes=enough)))
    short = replace(part, plan=replace(part.plan, free_disk_bytes=enough - 1))
    with pytest.raises(LaunchError, match="3 checkpoints are kept and one is being written"):
        check_disk(short)
    # What the run holds already need not be found again.
    held = part.run.checkpoints_dir / "step_00000500" / "rank_000.safetensors"
    held.parent.mkdir(parents=True)
    held.write_bytes(b"x")
    check_disk(short)


def shards(path: Path, *classes: str) -> Path:
    shard = Shard("a.tar", samples=8, bytes=8, sha256="0", index_sha256="0")
    path.mkdir()
    splits = {"train": Split("train", (shard,))}
    write_manifest(Manifest(path, "set", classes, classes, splits), path)
    return path


def test_classes_that_the_weights_do_not_know_are_told(tmp_path: Path) -> None:
    large = shards(tmp_path / "large", "n00000001", "n00000002", "n00000003")
    small = shards(tmp_path / "small", "n00000004", "n00000002")
    runs = f"runs_dir={tmp_path}"
    parent = load_run("swin_t_22k", [runs, f"data.path={large}"])
    tuned = load_run("swin_t_22k_to_1k_224", [runs, f"data.path={small}"])
    (warning,) = compare_classes(tuned, [parent, tuned])
    assert "1 of 2 classes are not among its 3" in warning
    assert warning.endswith("start from zeros: n00000004")
    # Of another command: what its export says, before that what it is trained on.
    run = RunDirectory(tmp_path / "swin_t_22k")
    run.create(parent, "{}")
    assert compare_classes(tuned, [tuned]) == [warning]
    run.export_dir.mkdir()
    (run.export_dir / "config.json").write_text('{"classes": ["n00000002", "n00000004"]}')
    assert compare_classes(tuned, [tuned]) == []
    assert compare_classes(parent, [parent, tuned]) == []
    (run.export_dir / "config.json").write_text('{"classes": []}')
    assert compare_classes(tuned, [tuned]) == []
