"""CUDA C on the CPU: the source that a GPU would run, compiled by g++ and run thread by thread, each access checked.

It finds accesses out of bounds, races, reads of uninitialised memory, misaligned accesses, barriers that not all
threads reach, warp operations whose mask is wrong, aliasing that `__restrict__` forbids, and undefined arithmetic. It
cannot see missing memory fences, bank conflicts, or how accurate the GPU's own functions are.
"""
