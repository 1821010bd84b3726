"""Finished weights in and out: safetensors with everything needed to use them again.

Receives a state dict, a model config and a class list; hands on an export directory, or reads the
weights of an export, a run or a checkpoint.
"""
