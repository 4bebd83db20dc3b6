"""Library behind the scripts of `tools/`: data preparation, benchmarks, comparisons of language models."""
