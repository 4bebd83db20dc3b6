"""The plugin, imported as ``import lm`` does it: that alone registers all of it."""

import lm  # noqa: F401
