"""What is copied into a run, and what is not."""

import json
import subprocess
from pathlib import Path

import pytest

from launch.snapshot import copy_source, describe_environment, source_files, source_sha256
from pretrain.run_directory import RunDirectory


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    write(root, "pretrain/a.py", "docs/b.md", "pretrain/gone.py", "data.bin")
    (root / ".gitignore").write_text("*.bin\n")
    git(tmp_path, "init", "-q", "source")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "x")
    (root / "pretrain" / "gone.py").unlink()
    (root / "pretrain" / "a.py").write_text("edited")
    write(root, "pretrain/new.py", "pretrain/cache.bin", "runs/x/big.txt")
    return root


def test_a_checkout_gives_tracked_files_and_new_code(checkout: Path) -> None:
    names = [str(name) for name in source_files(checkout)]
    assert names == [".gitignore", "docs/b.md", "pretrain/a.py", "pretrain/new.py"]


def test_without_git_the_code_folders_are_taken(tmp_path: Path) -> None:
    write(tmp_path, "pretrain/a.py", "pretrain/__pycache__/a.pyc", "configs/b.yaml", "runs/c")
    assert [str(name) for name in source_files(tmp_path)] == ["configs/b.yaml", "pretrain/a.py"]


def test_files_that_hold_credentials_are_not_copied(checkout: Path) -> None:
    write(checkout, "configs/.env", "pretrain/.netrc", "configs/me.pem", "configs/id_rsa")
    assert "pretrain/new.py" in map(str, source_files(checkout))
    assert not {"configs/.env", "pretrain/.netrc", "configs/me.pem", "configs/id_rsa"} & set(
        map(str, source_files(checkout))
    )


def test_a_second_copy_replaces_the_first(checkout: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    copy_source(run, checkout)
    assert (run.code_path / "pretrain" / "a.py").read_text() == "edited"
    (checkout / "pretrain" / "new.py").unlink()
    copy_source(run, checkout)
    assert not (run.code_path / "pretrain" / "new.py").exists()
    assert [path.name for path in run.path.iterdir()] == ["code"]


def test_the_environment_holds_versions_and_no_secrets(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-canary")
    command = ["python", "x", "a=s3cr3t-canary", "data.path=https://me:pw-canary@h/d?sig=canary"]
    environment = describe_environment(command, checkout)
    assert environment["command"][2:] == ["a=<WANDB_API_KEY>", "data.path=https://h/d?…"]
    assert environment["packages"]["pydantic"]
    assert len(environment["git_commit"]) == 40
    assert environment["git_changed_files"] == 3
    assert {"slurm", "nvidia_driver", "platform"} <= set(environment)
    assert "canary" not in json.dumps(environment)


def test_equal_sources_have_equal_digests(checkout: Path) -> None:
    before = source_sha256(checkout)
    assert before == source_sha256(checkout) == describe_environment([], checkout)["code_sha256"]
    (checkout / "pretrain" / "a.py").write_text("edited again")
    assert source_sha256(checkout) != before
