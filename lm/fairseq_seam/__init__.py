"""Where the plugin meets fairseq: registration of models, wrappers of layers, precision flags, patches."""
