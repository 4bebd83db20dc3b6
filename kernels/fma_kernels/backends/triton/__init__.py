"""Fused kernels in Triton. Nothing here is imported before :mod:`..selection` has found that they can run."""
