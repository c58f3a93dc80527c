"""A Sphinx extension: mends three things on pages that others lay out.

Scripts: Jupyter Book always loads sphinx-thebe, whose settings then stand twice on a page: an error
in the browser's console, and a script from elsewhere when clicked. This book does not use it.

Bibliography: docutils marks it as a list whose entries have a role that is no list item, so a
screen reader finds an empty list.

Signatures: NumPy's type aliases come out as what they stand for, lines long.
"""

import re
from typing import Any

from sphinx.application import Sphinx

# Sphinx writes some names with their module, some without.
ARRAY_LIKE = re.compile(
    r"_Buffer \| _SupportsArray\[dtype\[Any\]\] "
    r"\| _NestedSequence\[_SupportsArray\[dtype\[Any\]\]\] "
    r"\| complex \| bytes \| str \| _NestedSequence\[complex \| bytes \| str\]"
)
ND_ARRAY = re.compile(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]")
MODULE = re.compile(r"~(?!sslpath\.)(?:\w+\.)+(?=\w)")


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


def short_types(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, args: str | None, out: str | None
) -> tuple[str | None, str | None]:
    """Write NumPy's type aliases by their names.

    Example:
        >>> short_types(None, "", "", None, None, "(x: ndarray[tuple[Any, ...], dtype[uint8]])", "")
        ('(x: NDArray[uint8])', '')
    """

    def short(text: str | None) -> str | None:
        if text is None:
            return None
        text = MODULE.sub("", text)
        text = ARRAY_LIKE.sub("ArrayLike", text)
        return ND_ARRAY.sub(r"NDArray[\1]", text)

    return short(args), short(out)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", list_items, priority=900)
    app.connect("autodoc-process-signature", short_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
