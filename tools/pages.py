"""Checks of the built pages: every picture says what it shows, nothing is fetched from elsewhere.

python tools/pages.py out/book/_build/html      # prints what is wrong, exit code 1
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup, Tag

SHORTEST = 20  # letters of an alt text that says something
HASH = re.compile(r"[0-9a-f]{16,}|\.(png|svg|jpe?g)$")


def _text(element: Tag, attribute: str) -> str:
    """An attribute as one text; empty if there is none."""
    value = element.get(attribute) or ""
    return value if isinstance(value, str) else " ".join(value)


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a page."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for image in (soup.find("article") or soup).find_all("img"):
        alt = _text(image, "alt").strip()
        if len(alt) < SHORTEST or HASH.search(alt):
            yield f"a picture without alt text: {_text(image, 'src')} (alt: {alt!r})"
    for name, attribute in (("script", "src"), ("link", "href"), ("img", "src")):
        for element in soup.find_all(name):
            address = _text(element, attribute)
            if address.startswith(("http:", "https:", "//")) and "canonical" not in _text(
                element, "rel"
            ):
                yield f"<{name}> from elsewhere: {address}"
    for code in soup.find_all(["pre", "code", "script"]):
        if "Traceback (most recent call last)" in code.get_text():
            yield "an error on the page"
        code.decompose()
    for left in re.findall(r"\{(?:glue|cite|term|doc)[\w:]*\}", soup.get_text()):
        yield f"markup that was not understood: {left}"


def main() -> int:
    """Check all pages of a built book."""
    site = Path(sys.argv[1])
    made = {"genindex", "py-modindex", "search"}  # by Sphinx, not by us
    pages = [
        path
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts and path.stem not in made
    ]
    bad = [f"{path.relative_to(site)}: {problem}" for path in pages for problem in problems(path)]
    print("\n".join(bad))
    print(f"{len(bad)} problems" if bad else f"{len(pages)} pages: pictures and addresses are fine")
    return 1 if bad or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
