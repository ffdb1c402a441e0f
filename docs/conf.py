"""How Sphinx builds these pages: `python -m sphinx -W -b html docs docs/_build/html`."""

import re
from typing import Any

import raremix

project = "raremix"
author = "The raremix authors"
copyright = author
version = release = raremix.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the Attributes section describes fields; members would do it twice
napoleon_custom_sections = ["Source"]

html_theme = "furo"
html_title = f"raremix {release}"
html_show_sphinx = False
html_copy_source = False
# Code is up to 88 characters wide and should not need a scroll bar.
html_theme_options = {"light_css_variables": {"code-font-size": "80%"}}
html_static_path = ["static"]
html_css_files = ["pages.css"]

# Type aliases are written out when they are evaluated; these are the names the code gives them.
_ALIASES = [
    (
        r"~torch\.Tensor \| ~numpy\.ndarray\[~typing\.Any, ~numpy\.dtype\[~typing\.Any\]\]",
        "ArrayLike",
    ),
    (r"~numpy\.ndarray\[~typing\.Any, ~numpy\.dtype\[~typing\.Any\]\]", "Array"),
    (r"str \| ~os\.PathLike\[str\]", "PathLike"),
    (r"~typing\.Literal\['many', 'medium', 'few'\]", "Group"),
    (r"dict\[str, ~typing\.Any\]", "State"),
]


def _name_aliases(text: str | None) -> str | None:
    for written_out, alias in _ALIASES:
        text = text and re.sub(written_out, alias, text)
    return text


def _shorten_signature(
    app: Any,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    signature: str | None,
    result: str | None,
) -> tuple[str | None, str | None]:
    return _name_aliases(signature), _name_aliases(result)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _shorten_signature)
