"""The languages between the tape and the machine: graphs, symbolic sizes and kernels."""
