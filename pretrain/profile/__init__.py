"""Where a step's time and memory go: ranges round its parts, torch's profiler, one page of text.

`profiler` and `ranges` run beside training; the rest makes the page from a trace, without torch.
"""
