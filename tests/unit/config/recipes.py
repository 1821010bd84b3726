"""Recipes as shipped."""

from typing import Any

from pretrain.config.load import load_run
from pretrain.plan.derive import make_plan
from pretrain.plan.resources import resources_of


def load(name: str, preset: str | None = None) -> tuple[Any, Any]:
    """Return config and plan of a recipe as shipped, on its own number of 8-GPU nodes."""
    config = load_run(name, [f"preset={preset}"] if preset else [], cluster="slurm")
    resources = resources_of(config.cluster, 0)
    return config, make_plan(config, None, resources, free_disk_bytes=10**12)
