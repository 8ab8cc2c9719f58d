"""tapegrad: a tape-based autodiff compiler for Python."""
