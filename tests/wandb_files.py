"""Reading back what wandb wrote."""

from pretrain.metrics.mirror.files import local_files, read_file


def history_of(path):
    """The logged rows of a .wandb file, without wandb's own columns."""
    contents = read_file(path)
    assert contents.damage == []
    return contents.rows


def offline_files(run):
    return local_files(run.wandb_dir)
