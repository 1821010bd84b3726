"""Numbers and events of a run: declared, measured, recorded, mirrored and reported.

Receives step results, evaluation results and phases of time from `pretrain.train`; hands on
``metrics.jsonl`` (the record), ``events.jsonl``, ``progress.json``, the rank log's lines, a
Weights & Biases mirror of the record, and ``report.html``. Only rank zero writes.
"""
