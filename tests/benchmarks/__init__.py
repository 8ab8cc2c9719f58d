"""Benchmarks: they print ratios and assert nothing about time."""
