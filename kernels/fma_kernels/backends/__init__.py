"""Where the work is done: ``reference`` (dense definition), ``torch`` (blockwise, any device), ``triton`` (fused)."""
