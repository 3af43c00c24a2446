"""Benchmarks: each compares two commands in one run, and prints ratios."""
