"""Evaluation: what a trained model's answers are worth, in numbers and in pictures."""
