"""What the ranks of the conversion's tests do: save real ZeRO checkpoints of a tiny Swin."""

from pathlib import Path

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

from pretrain import dist
from pretrain.config.schema import ModelConfig
from pretrain.models.build import build
from pretrain.world import World

MODEL = ModelConfig(
    variant="swin_t",
    image_size=64,
    window_size=2,
    num_classes=3,
    embed_dim=12,
    depths=(1, 1, 2, 1),
    heads=(1, 2, 3, 4),
)


def save_zero(world: World, directory: str, modes: list[list]) -> list[str]:
    """One trained step and one save per mode (stage, precision); rank zero's own weights beside."""
    names = []
    for stage, precision in modes:
        torch.manual_seed(7)
        network = build(MODEL)
        decayed = [value for value in network.parameters() if value.ndim > 1]
        others = [value for value in network.parameters() if value.ndim == 1]
        engine, *_ = deepspeed.initialize(
            model=network,
            model_parameters=[{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            config={
                "train_micro_batch_size_per_gpu": 2,
                "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 100},
                "bf16": {"enabled": precision == "bf16"},
                "steps_per_print": 2**31,
            },
        )
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        images = torch.randn(2, 3, 64, 64).to(dtype)
        loss = F.cross_entropy(engine(images).float(), torch.tensor([0, world.rank]))
        engine.backward(loss)
        engine.step()
        name = f"stage_{stage}_{precision}"
        engine.save_checkpoint(str(Path(directory) / name), tag="global_step1")
        full = {}
        for key, value in network.named_parameters():
            whole = safe_get_full_fp32_param(value) if stage else value
            full[key] = whole.detach().clone()
        if world.rank == 0:
            save_file(full, Path(directory) / f"{name}.safetensors")
        dist.barrier()
        engine.destroy()
        names.append(name)
    return names
