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


def test_rows_names_and_extras_lead_somewhere(site):
    """Check the links to rows, to the reference, to notebooks and slides."""
    anchors, count = {}, 0
    for page in site.glob("*.html"):
        for address in re.findall(r'href="((?:equations|slides|interactive|notebooks/|api/)[^"]*)"', page.read_text()):
            path, _, anchor = address.partition("#")
            assert (site / path).exists(), (page.name, address)
            if anchor and path.endswith(".html"):
                if path not in anchors:
                    anchors[path] = set(re.findall(r'id="([^"]+)"', (site / path).read_text()))
                assert anchor in anchors[path], (page.name, address)
                count += 1
    assert count > 1000  # rows and names both have links
    table = (site / "equations.html").read_text()
    assert 'id="E12"' in table
    assert 'href="api/sampling.html#scoresde.sampling.DPMSolver"' in table


def test_the_reference_has_the_formulas_of_the_rows(site):
    from html import unescape

    page = unescape((site / "api" / "sde.html").read_text())
    start = page.index('id="scoresde.sde.SDE.posterior"')
    entry = page[start : page.index('<dl class="py', start)]
    assert 'href="../equations.html#P3"' in entry
    assert "<math" in entry
    every = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    assert every.count("<math") > 100
    assert ":math:" not in re.sub(r"<[^>]+>", "", every)


def test_the_slides_have_their_formulas_and_pictures(site):
    source, page = (ROOT / "docs" / "slides" / "slides.md").read_text(), (site / "slides.html").read_text()
    assert page.count("<section>") == len(source.split("\n---\n"))
    assert page.count("<math") == formulas(source)
    assert page.count('<img src="data:') == len(re.findall(r"^!\[", source, re.MULTILINE))
    assert "$" not in re.sub(r"<script.*?</script>|<[^>]+>", "", page, flags=re.DOTALL)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_interactive_page_computes_what_the_library_does(site, tmp_path):
    import torch

    import scoresde as S

    mixture, x, n = "[[-1.2, 0.4, 1.1], [0.141, 0.224, 0.1], [0.3, 0.5, 0.2]]", 0.7, 20
    read = (
        f"const w = this.contentWindow, m = {mixture}, f = w.estimate(m, {x}, 0.3);"
        f"document.body.dataset.found = JSON.stringify([f.logp, f.x0, f.eps, w.path(m, {x}, {n}, 0, null).at(-1)]);"
        "document.body.dataset.shown = w.document.getElementById('figures').textContent;"
        "const c = w.document.getElementById('eta'); c.value = 0; c.dispatchEvent(new Event('input'));"
        "document.body.dataset.after = w.document.getElementById('figures').textContent"
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<body><iframe src="file://{site}/interactive.html" width="390" height="800" onload="{read}"></iframe></body>'
    )
    text, log = dom(f"file://{wrapper}")
    found = [float(value) for value in re.search(r'data-found="\[([^\]]+)\]"', text)[1].split(",")]
    vp = S.VPSDE()
    variances = torch.tensor([0.141, 0.224, 0.1], dtype=torch.float64).square()[:, None]
    model = S.GaussianMixture([[-1.2], [0.4], [1.1]], variances, weights=[0.3, 0.5, 0.2]).model(vp)
    at = torch.tensor([[x]], dtype=torch.float64)
    estimate = model(at, 0.3)
    times = torch.cat([1 - torch.arange(n, dtype=torch.float64) * 0.999 / n, torch.tensor([0.001])])
    end = S.sample(model, (1, 1), S.DDIM(grid=times, last="none"), start=at)
    expected = [model.log_prob(at, 0.3), estimate.x0, estimate.eps, end]
    assert found == pytest.approx([value.item() for value in expected], abs=1e-9)
    shown, after = (re.search(rf'data-{name}="([^"]+)"', text)[1] for name in ("shown", "after"))
    assert shown != after
    assert "error" not in log.lower().split("console", 1)[-1][:400] or "CONSOLE" not in log


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
