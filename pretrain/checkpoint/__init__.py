"""Saved state that can be trusted: written whole or not at all, verified before it is used.

Receives each rank's named fragments and the run's small state; hands on directories that exist only
when complete, and a reader that assembles any range of any parameter from them. Files are
safetensors and JSON: nothing read here can run code.
"""
