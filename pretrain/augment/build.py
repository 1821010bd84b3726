"""From a config to what is done to its batches, without the model or the engine."""

from pretrain.augment.masking import MaskedAugment
from pretrain.augment.pipeline import Augment
from pretrain.config.schema import RunConfig


def augment_of(config: RunConfig) -> Augment | MaskedAugment:
    """Make what turns batches of the loader into what the model is given.

    Raises:
        ConfigError: ``augment.randaugment`` is not in timm's notation.
    """
    augment = Augment(config.augment, num_classes=config.model.num_classes, seed=config.seed)
    return augment if config.masking is None else MaskedAugment(augment, config.masking)
