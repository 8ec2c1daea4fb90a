"""Comparison with numbers that the authors' code produced; see README.md."""
