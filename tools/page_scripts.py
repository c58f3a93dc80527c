"""A Sphinx extension: mends two things in every page that others lay out.

Jupyter Book always loads sphinx-thebe, whose settings then stand twice on a page: an error in the
browser's console, and a script from elsewhere when clicked. This book does not use it.

Docutils marks a bibliography as a list whose entries have a role that is no list item, so a screen
reader finds an empty list. So the entries become list items.
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


def list_items(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Make the entries of a bibliography items of their list."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", list_items, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
