"""Read by ``sphinx-build -nW -b html docs docs/_build``."""

import os
from importlib.metadata import version as installed_version
from pkgutil import iter_modules

from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import trio_httptrack

project = "trio-httptrack"
version = release = installed_version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "benchmarks"]
html_theme = "furo"
maximum_signature_line_length = 88

autodoc_member_order = "bysource"
autodoc_type_aliases = {  # by what a reader can use instead of private or very long types
    "Composed": "TrackerFunc",
    "Framework": "~hypercorn.typing.Framework",
    "Hook": "Tracker",
}

# The public classes say that they are trio_httptrack's own, so autodoc looks there for the
# docstrings of their attributes. Show it those of the modules where they are written.
public = ModuleAnalyzer.for_module("trio_httptrack")
public.analyze()
for module in iter_modules(trio_httptrack.__path__, "trio_httptrack."):
    private = ModuleAnalyzer.for_module(module.name)
    private.analyze()
    public.attr_docs |= private.attr_docs
    public.tagorder |= private.tagorder

nitpicky = True
if os.environ.get("DOCS_INTERSPHINX"):  # needs the network, which a build must not
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }
    nitpick_ignore_regex = [("py:.*", r"hypercorn\..*")]  # whose documentation has no such index
else:
    nitpick_ignore_regex = [("py:.*", r"(collections|hypercorn|logging|trio)(\..*)?")]


def setup(app):
    # Not as an extension: that takes "Gauge: ..." at an attribute for its type.
    def read_sections(_app, _what, _name, _object, _options, lines):
        lines[:] = GoogleDocstring(lines).lines()

    app.connect("autodoc-process-docstring", read_sections)
