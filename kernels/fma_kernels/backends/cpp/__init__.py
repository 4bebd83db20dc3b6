"""Fused kernels for CPUs in C++, compiled by the machine's compiler at first use and called through ctypes."""
