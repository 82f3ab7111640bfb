"""Tests: what tests and the demo make."""
