"""The built pages in a browser: they load, navigate, search, and can be used by everyone.

``make pages`` builds the book and runs this with a headless Chromium, if one is installed.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest

SITE = Path(os.environ.get("SSLPATH_SITE", "out/book/_build/html")).resolve()
NEEDED = bool(os.environ.get("SSLPATH_NEED_BROWSER"))
NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
SERIOUS = ("serious", "critical")
HANG_MS = 20 * 60 * 1000  # ends what hangs; a slow machine never gets there


def pages():
    return sorted(SITE.glob("book/*.html"))


def names(path):
    return path.stem


@pytest.fixture(scope="session")
def browser():
    found = [shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome")]
    chromium = next(filter(None, found), None)
    if chromium is None:
        if NEEDED:
            pytest.fail("no chromium, although SSLPATH_NEED_BROWSER is set")
        pytest.skip("needs chromium: apt-get install chromium")
    if not pages():
        if NEEDED:
            pytest.fail(f"no pages in {SITE}")
        pytest.skip(f"needs the built book in {SITE}: make book")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    # Pages are opened from the file system, as a reader of a copy would. Nothing may be fetched.
    options = ["--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    started = playwright.chromium.launch(executable_path=chromium, args=options, timeout=HANG_MS)
    yield started
    started.close()
    playwright.stop()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport=WIDE)
    context.set_default_timeout(HANG_MS)
    made = context.new_page()
    made.errors, made.fetched = [], []
    made.on("console", lambda m: made.errors.append(m.text) if m.type == "error" else None)
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.on("request", lambda r: made.fetched.append(r.url) if r.url[:4] == "http" else None)
    yield made
    context.close()


def visit(page, path):
    page.goto(path.as_uri(), wait_until="load")
    # Formulas are set after loading.
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    return page


def test_the_book_has_all_its_pages():
    if not pages() and not NEEDED:
        pytest.skip(f"needs the built book in {SITE}: make book")
    toc = Path(__file__).resolve().parents[1] / "_toc.yml"
    wanted = [
        line.split("book/")[1].strip() for line in toc.read_text().splitlines() if "book/" in line
    ]
    assert {path.stem for path in pages()} >= set(wanted)


@pytest.mark.parametrize("path", pages(), ids=names)
def test_a_page_loads_without_an_error_and_fetches_nothing(page, path):
    visit(page, path)
    assert page.errors == []
    assert page.fetched == []
    broken = page.evaluate(
        "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    )
    assert broken == []
    unset = page.evaluate("() => document.querySelectorAll('mjx-merror').length")
    assert unset == 0


@pytest.mark.parametrize("path", pages(), ids=names)
def test_a_page_fits_a_telephone(page, path):
    page.set_viewport_size(NARROW)
    visit(page, path)
    width = page.evaluate("() => document.scrollingElement.scrollWidth")
    assert width <= NARROW["width"] + 1
    wide = page.evaluate(
        """() => [...document.querySelectorAll('article img')]
                   .filter(i => i.getBoundingClientRect().width > 360).map(i => i.src)"""
    )
    assert wide == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", pages(), ids=names)
def test_a_page_has_no_serious_barrier(page, path, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.add_init_script(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    visit(page, path)
    assert page.evaluate("() => document.documentElement.dataset.theme") == theme
    found = axe.run(page).response["violations"]
    bad = [
        f"{one['id']} ({one['impact']}): {node['html'][:120]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]
    assert bad == [], "\n".join(bad)


def test_navigation_leads_through_the_whole_book(page):
    visit(page, SITE / "book" / "index.html")
    seen = ["index"]
    while page.locator("a.right-next").count():
        left = page.url
        page.locator("a.right-next").first.click()
        page.wait_for_url(lambda url, left=left: url != left)
        seen.append(Path(page.url.split("?")[0].split("#")[0]).stem)
        assert len(seen) < 40
    assert len(seen) == len(set(seen))
    assert set(seen) == {path.stem for path in pages()}


def test_search_finds_a_word_of_the_book(page):
    visit(page, SITE / "search.html")
    page.goto((SITE / "search.html").as_uri() + "?q=margin")
    page.wait_for_selector("#search-results li a")
    hits = page.locator("#search-results li a").all_inner_texts()
    assert any("siamese" in hit.lower() for hit in hits), hits
    assert page.errors == []


def test_a_solution_is_hidden_until_asked_for(page):
    visit(page, SITE / "book" / "00-first-look.html")
    button = page.locator("details.hide summary").first
    assert "Show a solution" in button.inner_text()
    code = page.locator("details.hide pre").first
    assert not code.is_visible()
    button.click()
    assert code.is_visible()


def test_a_downloaded_chapter_holds_stubs_and_no_solutions(page):
    for path in sorted(SITE.glob("book/0*.html")):
        visit(page, path)
        links = page.evaluate("() => [...document.querySelectorAll('a')].map(a => a.href)")
        file = next(x for x in links if "_sources" in x and x.endswith(".ipynb"))
        cells = json.loads(Path(url2pathname(urlparse(file).path)).read_text())["cells"]
        tags = [tag for cell in cells for tag in cell["metadata"].get("tags", [])]
        assert "exercise" in tags, path.stem
        assert not {"probe", "solution"} & set(tags), path.stem


def test_launch_buttons_name_the_right_place(page):
    visit(page, SITE / "book" / "00-first-look.html")
    links = page.evaluate("() => [...document.querySelectorAll('a')].map(a => a.href)")
    colab = [x for x in links if "colab.research.google.com" in x]
    binder = [x for x in links if "mybinder.org" in x]
    assert colab == [
        "https://colab.research.google.com/github/sslpath/sslpath/blob/main/book/00-first-look.ipynb"
    ]
    assert binder
    assert "gh/sslpath/sslpath/main" in binder[0]
    assert "book/00-first-look.ipynb" in binder[0]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
