"""Every number that follows from a config, its data and the machines, before anything runs.

It receives a `RunConfig`, a manifest (or none yet) and the resources; it hands on a frozen `Plan`,
its text for people, and refusals of what cannot run. Nothing here imports torch or writes a file.
"""
