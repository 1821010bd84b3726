"""From a config's name to a validated `RunConfig`, and from there to every derived number (`Plan`).

It receives YAML files, ``key=value`` overrides and, for the plan, counts of samples and ranks. It
hands on frozen values. Nothing here imports torch or writes a file.
"""
