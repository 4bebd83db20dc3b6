"""The backends: ``reference`` (dense definition), ``torch`` (blockwise, any device), ``triton`` (fused)."""
