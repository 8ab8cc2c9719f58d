"""What each int64 word of the thread pool's table means. Nothing here imports Numba."""

from __future__ import annotations

#: Each of these is written by several threads and has a cache line of 64 bytes, and the one beside it, to itself.
TICKET, DONE, OWNER, SLEEPERS = 0, 16, 32, 48
#: Written by the caller of a phase: the phase, its generation, the time until which the pool is left alone.
FUNCTION, BLOCK, GENERATION, RESTING = 64, 65, 66, 67
#: Set from Python: how many threads are to help - the others end - and the bytes of scratch that each of them has.
HELPERS, SCRATCH_BYTES = 80, 81
#: Addresses of a mutex, a condition variable and the C functions that the pool calls, and the clock it reads.
MUTEX, CONDITION, LOCK, UNLOCK, WAIT, SIGNAL, YIELD, CLOCK, CLOCK_NUMBER = range(96, 105)

#: Where the mutex and the condition variable themselves lie, with room for any C library's.
MUTEX_PLACE, CONDITION_PLACE = 112, 144

#: The length of the table.
WORDS = 176
