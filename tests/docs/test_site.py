"""The site: it builds without warnings, offline, with every formula."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "latex2mathml")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NAMES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build a copy of the pages, with warnings as errors."""
    source = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", source / "docs")
    (source / "scoresde").symlink_to(ROOT / "scoresde")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(source / "docs"), str(source / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return source / "html"


def formulas(text):
    """Return the number of formulas in a page's source."""
    text = re.sub(r"^```math\n.*?^```$", "FORMULA", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    count = text.count("FORMULA")
    text, inline = re.subn(r"\$`[^`]+`\$", "", text)
    text = re.sub(r"``.*?``|`[^`]*`", "", text, flags=re.DOTALL)
    return count + inline + len(re.findall(r"\$[^$]+\$", text))


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_is_there(site, name):
    page = (site / f"{name}.html").read_text()
    page = page[page.index("<article") : page.index("</article>")]  # headings stand in the contents, too
    assert page.count("<math") == formulas((ROOT / "docs" / f"{name}.md").read_text())
    body = re.sub(r"<(pre|code).*?</\1>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert "$" not in re.sub(r"<[^>]+>", "", body)


def test_no_request_leaves_a_page(site):
    for path in site.rglob("*.html"):
        for address in re.findall(
            r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"(https?:[^\"]+)\"", path.read_text()
        ):
            raise AssertionError(f"{path.name} asks for {address}")


def test_the_api_has_every_public_name(site):
    import scoresde

    for room in (
        "sde",
        "nets",
        "data",
        "models",
        "guidance",
        "sampling",
        "likelihood",
        "training",
        "interop",
        "course",
    ):
        page = (site / "api" / f"{room}.html").read_text()
        for name in getattr(scoresde, room).__all__:
            if callable(getattr(getattr(scoresde, room), name)):
                assert f'id="scoresde.{room}.{name}"' in page, name


def dom(address, *flags):
    """Return a page as the browser has it after its scripts, and its log."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command = [
        BROWSER,
        *options,
        "--virtual-time-budget=8000",
        "--enable-logging=stderr",
        *flags,
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser(site, tmp_path):
    # 1. the search finds what it should
    found, log = dom(f"file://{site}/search.html?q=reverse+SDE")
    assert "backwards.html" in found
    assert "CONSOLE" not in log or "error" not in log.lower().split("console", 1)[1][:400]
    # 2. no page scrolls sideways on a phone
    kept = "this.contentDocument.documentElement.scrollWidth"
    frames = ""
    for name in ("backwards", "equations", "README", "samplers"):
        load = f"document.body.dataset.{name.lower()} = {kept}"
        frames += f'<iframe src="file://{site}/{name}.html" width="390" height="800" onload="{load}"></iframe>'
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<body>{frames}</body>")
    text, _ = dom(f"file://{wrapper}")
    widths = {name: int(width) for name, width in re.findall(r'data-(\w+)="(\d+)"', text)}
    assert len(widths) == 4
    assert all(width <= 390 for width in widths.values()), widths
