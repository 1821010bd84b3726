"""Accuracy of a model on a labelled split, exact over any number of ranks.

Receives logits and labels batch by batch; hands on one `EvalResult`.
"""
