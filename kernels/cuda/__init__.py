"""CUDA kernels: the CUDA C that generated sources call. Importing this package imports nothing else."""
