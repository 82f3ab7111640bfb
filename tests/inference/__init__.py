"""Tests: answers outside of a trainer."""
