"""Finding the fastest settings that fit a device, by measuring them.

``python -m pretrain.tune`` receives a config, tries settings one after the other, each in a process
of its own, and hands on a file that `pretrain.plan.tuned` reads. Only `measure` imports torch.
"""
