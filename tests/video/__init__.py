"""Tests: videos."""
