"""The trainer: config, data, augmentation, models, engine, checkpoints, metrics.

It receives a run directory or a config's name and hands on weights, metrics and a report.
"""
