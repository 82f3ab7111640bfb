"""Tests: choosing rows."""
