"""Tests: training on the real engine."""
