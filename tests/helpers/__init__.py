"""Code that tests of several folders share: problems, models, small archives, processes."""
