"""A Sphinx extension: pages without the scripts of thebe, which this book does not use.

Jupyter Book always loads sphinx-thebe, whose settings then stand twice on a page: an error in the
browser's console, and a script from elsewhere when clicked.
"""

from typing import Any

from sphinx.application import Sphinx


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Leave thebe's scripts out of a page."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe"
        not in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}"
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
