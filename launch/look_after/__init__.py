"""The verbs of ``launch/runs.py``: what people ask of runs, and what they do to them."""
