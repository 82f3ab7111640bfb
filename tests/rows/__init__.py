"""Tests: rows."""
