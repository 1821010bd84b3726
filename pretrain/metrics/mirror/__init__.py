"""Weights & Biases: the record mirrored there by a process of its own, dashboards as code, repair.

Receives ``metrics.jsonl`` and ``events.jsonl``; hands on a wandb run. Nothing waits for it.
"""
