"""A second set that a run is measured on while it trains, through WordNet ids. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config.schema import ProbeConfig
from pretrain.data.manifest import Manifest, read_manifest
from pretrain.data.remote import Patience
from pretrain.evaluate.classes import ClassMap, match_classes


@dataclass(frozen=True)
class Probe:
    """A set to measure on.

    Attributes:
        manifest: of its shard set.
        split: which of its splits.
        classes: what its labels are in the model's head.
    """

    manifest: Manifest
    split: str
    classes: ClassMap


def open_probe(
    settings: ProbeConfig,
    model_classes: Sequence[str],
    *,
    cache_dir: str | None,
    patience: Patience,
) -> Probe:
    """Find the set and its classes in the model's head; its shards are not looked at.

    Args:
        settings: of the config.
        model_classes: WordNet ids in the order of the head's rows.
        cache_dir: as ``data.cache_dir``.
        patience: the deadlines for a remote set.

    Raises:
        DataError: it is no shard set, lacks the split, or has classes that the model has not.
    """
    manifest = read_manifest(settings.path, cache_dir=cache_dir, patience=patience)
    manifest.split(settings.split)
    classes = match_classes(
        model_classes,
        manifest.classes,
        what=f"eval.probe: {manifest.location}",
        leave_out_unknown=settings.leave_out_unknown_classes,
        switch="eval.probe.leave_out_unknown_classes=true",
    )
    return Probe(manifest, settings.split, classes)
