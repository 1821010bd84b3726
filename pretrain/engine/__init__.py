"""Computes optimizer steps: DeepSpeed ZeRO behind a small face.

Receives a model, micro-batches of images with soft targets, and a learning rate per step; hands on
the step's loss, gradient norm, and its state as named fragments that any world size can read.
"""
