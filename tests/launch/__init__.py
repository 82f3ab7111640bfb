"""Tests: starting a run."""
