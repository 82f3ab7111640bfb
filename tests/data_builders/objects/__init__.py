"""Tests: objects in videos."""
