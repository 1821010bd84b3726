import gzip
import shlex

import pytest
from image_folders import write_class, write_folder

from data_tools.build import main as build
from data_tools.inspect import inspect, main
from data_tools.raw_forms import FORMS_22K
from data_tools.raw_forms_1k import FORMS_1K
from data_tools.raw_forms_21kp import FORMS_21KP
from data_tools.synthetic import main as synthetic
from pretrain.errors import DataError


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw") / "forms"
    assert synthetic([str(root), "--raw"]) == 0
    return root


ALL = [("imagenet22k", form) for form in FORMS_22K]
ALL += [("imagenet21kp", form) for form in FORMS_21KP]
ALL += [("imagenet1k", form) for form in FORMS_1K if form != "folders"]


@pytest.mark.parametrize(("edition", "form"), ALL)
def test_what_it_says_to_type_works(raw, tmp_path, monkeypatch, capsys, edition, form):
    assert main([str(raw / edition / form)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"type: python -m data_tools.build {edition} ")
    monkeypatch.chdir(tmp_path)
    assert build([*shlex.split(line)[4:], "--workers", "1"]) == 0
    assert main([f"shards/{edition}"]) == 0
    assert f"a shard set, {edition}: " in capsys.readouterr().out


def test_parts_lead_to_the_whole(raw):
    tars = raw / "imagenet1k" / "tars"
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        found = inspect(tars / name)
        assert (found.source, found.path) == ("imagenet1k", tars)
    one = next((raw / "imagenet22k" / "tars").iterdir())
    found = inspect(one)
    assert (found.source, found.path) == ("imagenet22k", one.parent)


def test_an_archive_alone_in_a_directory_is_found(raw, tmp_path):
    (tmp_path / "fall11_whole.tar").symlink_to(raw / "imagenet22k" / "fall11_whole.tar")
    assert inspect(tmp_path).path == tmp_path / "fall11_whole.tar"


def test_folders_are_told_apart(raw, tmp_path):
    assert inspect(raw / "imagenet1k" / "folders").source == "imagefolder"  # not a thousand
    assert inspect(write_folder(tmp_path / "a")).source == "imagefolder"
    write_class(tmp_path / "b" / "cats", 1)
    write_class(tmp_path / "b" / "dogs", 1)
    assert inspect(tmp_path / "b").source == "imagefolder"
    (tmp_path / "c" / "imagenet21k_train").mkdir(parents=True)
    assert inspect(tmp_path / "c").source == "imagenet21kp"
    for folder in ("train", "val"):
        for i in range(1000):
            (tmp_path / "d" / folder / f"n{i:08d}").mkdir(parents=True)
    assert inspect(tmp_path / "d").source == "imagenet1k"


def test_foreign_shards_are_recognised(small_shards, tmp_path):
    shard = next(small_shards.path.glob("*.tar"))
    (tmp_path / "x-0000.tar").write_bytes(shard.read_bytes())
    (tmp_path / "x-0001.tar").write_bytes(shard.read_bytes())
    for path in (tmp_path, tmp_path / "x-0000.tar"):
        found = inspect(path)
        assert (found.source, found.path) == ("index", tmp_path)
        assert "without a manifest" in found.what


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<html>" + b" " * 900, r"a web page \(HTML\)"),
        (b"x" * 900, "damaged: no tar header"),
        (bytes(10240), "nothing known; it holds nothing"),
        (gzip.compress(b"x" * 5000)[:20], "a damaged gzip file"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar: .*{message}"):
        inspect(tmp_path / "a.tar")


def test_other_paths_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: does not exist"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"nothing known; it holds a\.txt; docs/data\.md lists"):
        inspect(tmp_path)
