"""What a run leaves behind: its weights, for others to start from."""

from collections.abc import Mapping

from torch import Tensor

from pretrain.convert.export import write_export
from pretrain.job import Job
from pretrain.models.masked import encoder_weights
from pretrain.run_directory import learning_sha256


def export(job: Job, weights: Mapping[str, Tensor]) -> None:
    """Write the run's export, without what only masked pre-training needs. Rank zero.

    Args:
        job: the run, at its end.
        weights: every parameter whole, fp32 on the CPU, raw or averaged as the config has it.
    """
    config = job.config
    has_head = config.masking is None
    write_export(
        job.run.export_dir,
        encoder_weights(weights),
        model=config.model,
        classes=job.manifest.classes if has_head else (),
        class_names=job.manifest.class_names if has_head else (),
        preprocessing={
            "image_size": config.model.image_size,
            "resize": config.eval.resize,
            "mean": config.augment.mean,
            "std": config.augment.std,
        },
        provenance={
            "run": config.name,
            "step": job.plan.total_steps,
            "weights": config.ema.given,
            "samples_consumed": job.plan.total_steps * job.plan.global_batch,
            "config_sha256": learning_sha256(config),
            "edition": job.manifest.edition,
        },
    )
