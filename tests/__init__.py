"""The tests, which share ``tests.*`` helpers; they mirror the rooms of the project."""
