"""Tests: minutes each (`make long`)."""
