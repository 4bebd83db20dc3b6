"""Models; each file registers its own."""
