"""For tests: what several tests need."""
