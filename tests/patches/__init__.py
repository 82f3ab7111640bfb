"""Tests: patches of other people's code."""
