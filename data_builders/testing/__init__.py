"""What tests and the demo make for themselves: a model small enough for a laptop."""
