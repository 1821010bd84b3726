import numpy as np
import pytest
from image_folders import image_bytes, write_class, write_folder

from data_tools.sources import imagefolder
from pretrain.data.manifest import Manifest
from pretrain.errors import DataError


def listed(root, class_names_file=None, eval_per_class=None, seed=0):
    return imagefolder(
        root, class_names_file=class_names_file, eval_per_class=eval_per_class, seed=seed
    )


def test_train_and_validation_folders_are_splits(tmp_path):
    source = listed(write_folder(tmp_path))
    assert source.classes == ("n01", "n02", "n03")
    assert source.class_names == source.classes
    assert set(source.splits) == {"train", "validation"}
    train = source.splits["train"]
    assert len(train.paths) == 24
    for path, label, size in zip(train.paths, train.labels, train.sizes, strict=True):
        assert path.startswith(f"train/{source.classes[label]}/")
        assert (tmp_path / path).stat().st_size == size


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train", "validation"], {"train", "validation"}),
        (["train", "test"], {"train", "validation"}),
        (["train", "val", "test"], {"train", "validation", "test"}),
        (["train"], {"train"}),
    ],
)
def test_folder_names_become_split_names(tmp_path, folders, splits):
    for folder in folders:
        write_class(tmp_path / folder / "n01", 2)
    assert set(listed(tmp_path).splits) == splits


def test_class_folders_directly_are_training(tmp_path):
    write_class(tmp_path / "cat", 2)
    write_class(tmp_path / "ant", 3)
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "cat" / "more" / "x.jpg").write_bytes(image_bytes(9))
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    source = listed(tmp_path)
    assert source.classes == ("ant", "cat")
    assert source.splits["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert "cat/more/x.jpg" in source.splits["train"].paths


def test_a_validation_split_can_be_carved(tmp_path):
    write_class(tmp_path / "n01", 9)
    write_class(tmp_path / "n02", 5)
    whole = listed(tmp_path).splits["train"]
    carved = listed(tmp_path, eval_per_class=3, seed=1).splits
    assert np.bincount(carved["validation"].labels).tolist() == [3, 3]
    assert np.bincount(carved["train"].labels).tolist() == [6, 2]
    assert sorted(carved["train"].paths + carved["validation"].paths) == whole.paths
    again = listed(tmp_path, eval_per_class=3, seed=1).splits
    assert again["validation"].paths == carved["validation"].paths
    other = listed(tmp_path, eval_per_class=3, seed=2).splits
    assert other["validation"].paths != carved["validation"].paths


def test_names_of_other_classes_are_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "other.txt").write_text("n77\tsomething\n")
    with pytest.raises(
        DataError, match=r"other\.txt: names none of the 3 classes; expected .* n01"
    ):
        listed(tmp_path, class_names_file=tmp_path / "other.txt")


def test_class_names_come_from_the_file(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("n02\tsecond thing\n\nn99\tunused\n")
    assert listed(tmp_path).class_names == ("n01", "second thing", "n03")
    other = tmp_path / "names.tsv"
    other.write_text("n01\tfirst\n")
    assert listed(tmp_path, class_names_file=other).class_names == ("first", "n02", "n03")


def test_malformed_names_are_located(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("n02\tfine\nn01 no tab\n")
    with pytest.raises(DataError, match=r"classes\.txt:2: expected id<TAB>name, got 'n01 no tab'"):
        listed(tmp_path)


def test_missing_name_files_are_named(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        listed(tmp_path, class_names_file=tmp_path / "nowhere")


def test_missing_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere: does not exist; expected a directory"):
        listed(tmp_path / "nowhere")


def test_files_are_no_sources(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is a file"):
        listed(tmp_path / "file")


def test_empty_sources_are_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        listed(tmp_path)


def test_sources_without_classes_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(image_bytes(1))
    with pytest.raises(DataError, match="train: no class folders"):
        listed(tmp_path)


def test_empty_classes_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "n00").mkdir()
    with pytest.raises(DataError, match="1 class folders without files, such as n00"):
        listed(tmp_path)


def test_folders_without_any_file_are_refused(tmp_path):
    (tmp_path / "n01").mkdir()
    with pytest.raises(DataError, match="no files"):
        listed(tmp_path)


def test_validation_classes_must_be_known(tmp_path):
    write_folder(tmp_path)
    write_class(tmp_path / "val" / "n77", 1)
    with pytest.raises(DataError, match=r"1 class folders that training has not, such as n77"):
        listed(tmp_path)


def test_validation_may_lack_classes(tmp_path):
    """The validation split of ImageNet-22K covers only 12 thousand classes."""
    write_class(tmp_path / "train" / "n01", 2)
    write_class(tmp_path / "train" / "n02", 2)
    write_class(tmp_path / "val" / "n02", 2)
    assert listed(tmp_path).splits["validation"].labels.tolist() == [1, 1]


def test_two_validation_folders_are_ambiguous(tmp_path):
    for folder in ("train", "val", "validation"):
        write_class(tmp_path / folder / "n01", 1)
    with pytest.raises(DataError, match="both val/ and validation/"):
        listed(tmp_path)


def test_validation_without_training_is_refused(tmp_path):
    write_class(tmp_path / "val" / "n01", 1)
    with pytest.raises(DataError, match="val/ but no train/"):
        listed(tmp_path)


def test_carving_where_there_is_validation_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"validation images of its own; leave --eval-per-class"):
        listed(write_folder(tmp_path), eval_per_class=2)


@pytest.mark.parametrize("count", [0, -1, 5, 6])
def test_carving_must_leave_something(tmp_path, count):
    write_class(tmp_path / "n01", 5)
    with pytest.raises(DataError, match="--eval-per-class: expected at least 1 and fewer"):
        listed(tmp_path, eval_per_class=count)


def test_numbered_folders_are_labels_of_another_set(tmp_path):
    """ImageNet-V2: folders 0 to 999, the labels of ImageNet-1K; sorted as text they are not."""
    known = Manifest(
        tmp_path,
        "known",
        tuple(f"n{number:08d}" for number in range(100, 112)),
        tuple(f"name {number}" for number in range(12)),
        {},
    )
    for folder in ("0", "2", "10", "11"):
        write_class(tmp_path / folder, 2)
    source = imagefolder(
        tmp_path, class_names_file=None, eval_per_class=None, seed=0, numbered_by=known
    )
    images = source.splits["train"]
    for path, label in zip(images.paths, images.labels, strict=True):
        number = int(path.split("/")[0])
        assert source.classes[label] == f"n{100 + number:08d}"
        assert source.class_names[label] == f"name {number}"
    assert len(images.paths) == 8


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("n01", "expected a folder named 0 to 2"),
        ("01", "named 0 to 2"),
        ("3", "labels 0 to 2 only"),
    ],
)
def test_folders_that_are_no_labels_are_refused(tmp_path, folder, message):
    known = Manifest(tmp_path, "known", ("a", "b", "c"), ("a", "b", "c"), {})
    write_class(tmp_path / folder, 2)
    with pytest.raises(DataError, match=message):
        imagefolder(tmp_path, class_names_file=None, eval_per_class=None, seed=0, numbered_by=known)
