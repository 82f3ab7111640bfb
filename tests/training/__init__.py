"""Tests: what the trainer loads."""
