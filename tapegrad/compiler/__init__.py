"""From a graph to a program: simplify, fuse into kernels, plan memory, print source, compile."""
