"""Seam between the plugin and fairseq: registration of models, wrappers of layers, precision flags, patches."""
