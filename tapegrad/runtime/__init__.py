"""What runs programs: the reference interpreter, devices, and the cache of compiled programs on disk."""
