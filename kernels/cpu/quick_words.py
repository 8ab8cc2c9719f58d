"""The words of a quick call's table, and where CPython and NumPy keep what it reads. Nothing here imports Numba."""

from __future__ import annotations

#: Nobody may enter; somebody is inside; calls so far; the status of the last call that failed.
CLOSED, BUSY, CALLS, STATUS = range(4)
#: Addresses of the program, of its block, and of the word that says that somebody is writing the same cells.
PROGRAM, BLOCK, WRITING = range(4, 7)
#: Addresses of CPython's functions.
SAVE_THREAD, RESTORE_THREAD, INCREF, ALLOCATE, AS_INTEGER = range(7, 12)
#: Addresses of the objects that say what happened: nothing; all; a check failed; all but setting gradients.
MISSED, DONE, FAILED, UNSETTLED = range(12, 16)
#: Addresses of types and of other objects.
ARRAY_TYPE, TENSOR_TYPE, FLOAT_TYPE, INTEGER_TYPE, FALSE, NONE = range(16, 22)
#: Where a Tensor and an entry keep their fields, in bytes from the beginning of the object.
ENTRY_SLOT, STORAGE_SLOT, WEAK_SLOT, VALUE_SLOT, TRACKED_SLOT = range(22, 27)
#: Where the only output becomes a Tensor that is the result: what the Tensor and its entry look like but for the entry
#: and the value, and how many fields they have. 0 where the result is made in Python.
TENSOR_LIKE, ENTRY_LIKE, TENSOR_FIELDS, ENTRY_FIELDS = range(27, 31)
#: How many rows of each kind follow, in this order; the comment gives the words of a row.
ARGUMENTS = 31  # kind, where the address or number goes (or the object itself), dtype, `weak`, rank, sizes
CAPTURED = 32  # the same of an array that the function captured, which stands for `weak`
CELLS = 33  # places of a Tensor's entry, of its cell and of its storage, the storage
VALUES = 34  # place of a Tensor's entry, the array that is its value
FIELDS = 35  # place of a field, what is in it
OUTPUTS = 36  # where the address goes
GRADIENTS = 37  # place of a Tensor's gradient, what a call leaves in it
FIRST_ROW = 38

#: Kinds of arguments: the same object as ever, a Python float or int, an array, a Tensor.
SAME, FLOAT, INTEGER, ARRAY, TENSOR = range(5)
#: Words of an argument's row before the sizes.
ARGUMENT_WORDS = 5

#: Bytes from the beginning of an object to its fields: of any object, of a float, of a tuple, of a NumPy array.
OBJECT_REFERENCES, OBJECT_TYPE, OBJECT_FIELDS = 0, 8, 16
FLOAT_VALUE = 16
SEQUENCE_LENGTH, SEQUENCE_FIRST = 16, 24
ARRAY_DATA, ARRAY_NDIM, ARRAY_SHAPE, ARRAY_DTYPE, ARRAY_FLAGS = 16, 24, 32, 56, 64

#: NumPy's flags C_CONTIGUOUS and ALIGNED.
ALIGNED_CONTIGUOUS = 0x101
#: References to the entry of a cell that nobody but its Tensor holds: as its value, and as the storage's version.
UNSHARED_REFERENCES = 2
