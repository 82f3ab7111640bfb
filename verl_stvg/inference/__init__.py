"""A model's answers to rows outside of a trainer."""
