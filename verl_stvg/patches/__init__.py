"""Patches of other people's code, one file for each patched thing."""
