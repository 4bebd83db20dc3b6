"""Tasks; each file registers its own."""
