"""Tape-based autodiff compiler for Python."""
