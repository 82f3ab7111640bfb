"""Builders: what turns annotations, or nothing at all, into the rows and files that training reads."""
