"""Read by ``sphinx-build -nW -b html docs docs/_build``."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from pkgutil import walk_packages

from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import trio_httptrack.testing

sys.path.append(str(Path(__file__).parent))  # for state_diagram

project = "trio-httptrack"
project_copyright = "2026, the trio-httptrack developers"
version = release = installed_version(project)
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinxcontrib_trio",
    "state_diagram",
]
exclude_patterns = ["_build", "benchmarks"]
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {"light_logo": "logo-light.svg", "dark_logo": "logo-dark.svg"}
html_favicon = "_static/logo-light.svg"
myst_heading_anchors = 2
maximum_signature_line_length = 88

# Vendored, because a build must not need the network: of Debian's python3.11-doc, and of a build
# of Trio 0.35's documentation.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "trio": ("https://trio.readthedocs.io/en/stable", "inventories/trio.inv"),
}
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(httpx|hypercorn|opentelemetry|prometheus_client)\..*")]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # REGISTRY, not its repr
autodoc_type_aliases = {  # by what a reader can use instead of private or very long types
    "App": "~collections.abc.Callable",
    "Composed": "TrackerFunc",
    "Hook": "Tracker",
}

# The public classes say that they are the public package's own, so autodoc looks there for the
# docstrings of their attributes. Show it those of the modules where they are written.
for package in trio_httptrack, trio_httptrack.testing:
    public = ModuleAnalyzer.for_module(package.__name__)
    public.analyze()
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        if module.name != "trio_httptrack.testing._httpx":  # which needs httpx and shows nothing
            private = ModuleAnalyzer.for_module(module.name)
            private.analyze()
            public.attr_docs |= private.attr_docs
            public.tagorder |= private.tagorder


def setup(app):
    # Not as an extension: that takes "Gauge: ..." at an attribute for its type.
    def read_sections(_app, _what, _name, _object, _options, lines):
        lines[:] = GoogleDocstring(lines).lines()

    app.connect("autodoc-process-docstring", read_sections)

    def hide_constructors(_app, _what, _name, documented, *_):
        # Of what users do not make.
        made = (
            trio_httptrack.ConnState,
            trio_httptrack.ShutdownReport,
            trio_httptrack.TrackedServer,
            trio_httptrack.Tracker,
            trio_httptrack.testing.ClientStream,
            trio_httptrack.testing.MemoryServer,
        )
        return ("", None) if documented in made else None

    app.connect("autodoc-process-signature", hide_constructors)
