"""Benchmark of attentions on one input: correctness, time, memory, and the least time that the device needs."""
