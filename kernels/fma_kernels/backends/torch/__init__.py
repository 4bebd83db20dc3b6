"""Blockwise kernels in PyTorch, for any device; they hold one chunk of blocks at a time."""
