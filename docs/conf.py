"""Sphinx: the documentation site (``make docs``)."""

import logging

from fma_kernels import __version__

project = "fma-mm"
author = "the fma-mm developers"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4

# Types stand in the signatures; what an argument means stands in the docstrings, in Google's style.
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_class_signature = "separated"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"fma-mm {__version__}"
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "native"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# fairseq and mmengine, which autodoc imports, let every logger print its debugging messages.
logging.getLogger("markdown_it").setLevel(logging.WARNING)
