"""Rows of a parquet file: what they hold, the prompts and frames they become, and the answers to them."""
