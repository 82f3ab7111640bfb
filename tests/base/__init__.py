"""Tests: what every floor stands on."""
