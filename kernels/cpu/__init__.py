"""CPU kernels: the functions that generated Numba source calls, and the library it calls by address.

Importing this package imports nothing else; ``philox`` needs NumPy alone, all other modules need Numba.
"""
