"""Where the work is done: ``reference`` (dense definition) and ``torch`` (blockwise, any device)."""
