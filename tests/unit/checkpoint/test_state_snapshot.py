import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pretrain.checkpoint.layout import read_fragments
from pretrain.checkpoint.snapshot import Snapshot


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6))
def test_writes_what_safetensors_reads(tmp_path_factory, lengths):
    path = tmp_path_factory.mktemp("snapshot") / "rank_00000.safetensors"
    fragments = {f"master|weight.{i}|0": torch.randn(n) for i, n in enumerate(lengths)}
    snapshot = Snapshot()
    snapshot.take(fragments)
    digest = snapshot.write(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert snapshot.bytes == path.stat().st_size
    read = load_file(path)
    assert read.keys() == fragments.keys()
    assert all(torch.equal(read[key], fragments[key]) for key in fragments)
    assert read_fragments(path) == {key: part.numel() for key, part in fragments.items()}


def test_holds_the_moment_and_uses_its_memory_again(tmp_path):
    live = torch.arange(5, dtype=torch.float32)
    snapshot = Snapshot()
    snapshot.take({"master|a|0": live})
    memory = snapshot.values.data_ptr()
    live += 100
    snapshot.write(tmp_path / "first")
    snapshot.take({"master|a|0": live[:3], "master|b|0": live.double()[:2]})
    assert snapshot.values.data_ptr() == memory
    snapshot.write(tmp_path / "second")
    assert load_file(tmp_path / "first")["master|a|0"].tolist() == [0, 1, 2, 3, 4]
    second = load_file(tmp_path / "second")
    assert second["master|a|0"].tolist() == [100, 101, 102]
    assert second["master|b|0"].dtype == torch.float32


def test_never_writes_over_a_file(tmp_path):
    (tmp_path / "there").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match="there"):
        Snapshot().write(tmp_path / "there")
