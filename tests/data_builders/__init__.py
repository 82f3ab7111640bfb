"""Tests: annotations to rows."""
