"""Tests: annotation sets."""
