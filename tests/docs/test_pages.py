"""The teaching pages: every block of code prints what the page shows.

The blocks run in order.
"""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
FIGURE_BYTES = {".png": 60_000, ".gif": 100_000}  # an animation has many pictures
REPOSITORY = "https://github.com/scoresde/scoresde/"

_spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

PAGES = sorted(path.name for path in DOCS.glob("*.md"))
FORMULAS = [*sorted(DOCS.glob("*.md")), *sorted((DOCS.parent / "scoresde" / "course" / "labs").glob("*.md"))]
WITH_CODE = [path.name for path in build.pages()]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CODE)
def test_page_prints_what_it_shows(name, tmp_path):
    results = build.run(DOCS / name, tmp_path)
    for block, printed in results:
        assert printed == (block.output or ""), f"{name}, line {block.line}: run python docs/build.py and read the page"
    drawn = {block.figure for block, _ in results if block.figure}
    for figure in drawn:
        assert (tmp_path / figure).stat().st_size < FIGURE_BYTES[Path(figure).suffix], figure
        assert (DOCS / "figures" / figure).stat().st_size < FIGURE_BYTES[Path(figure).suffix], figure
    assert drawn == set(re.findall(r"\]\(figures/([^)]+)\)", (DOCS / name).read_text()))
    if missing := sorted({block.needs for block, _ in results if block.missing}):
        pytest.skip(f"blocks of {name} need {', '.join(missing)}; the others ran")


def test_every_fence_is_known():
    """Check the first line of every fence.

    A slip there (``Python``, ``figure = x.png``) would show code that nothing runs.
    """
    for name in PAGES:
        fences = re.findall(r"^\s*```(.*)$", (DOCS / name).read_text(), re.MULTILINE)
        assert len(fences) % 2 == 0, name
        for opening in fences[::2]:
            assert re.fullmatch(r"python( figure=[\w-]+\.(png|gif))?( needs=\w+)?|text|math|sh|yaml", opening), (
                name,
                opening,
            )
        text = (DOCS / name).read_text()
        assert fences[::2].count("text") == sum(b.output is not None for b in build.blocks(text)), name


@pytest.mark.parametrize("page", FORMULAS, ids=lambda page: page.stem)
def test_inline_formulas_keep_their_backslashes(page):
    r"""Check that formulas with ``\,`` stand in dollars and backticks.

    Elsewhere Markdown takes the backslash away before a formula is drawn.
    """
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$`[^`]*`\$|``.*?``|`[^`\n]*`", "", text, flags=re.DOTALL)
    wrong = [one for one in re.findall(r"\$([^$]+)\$", text) if re.search(r"\\[!-/:-@\[-`{-~]", one)]
    assert not wrong, wrong


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", (DOCS / name).read_text()):
        assert (DOCS / target).exists(), f"{name} links to {target}"


def test_index_names_every_page_and_figures_are_used():
    index = (DOCS / "README.md").read_text()
    assert {name for name in PAGES if name != "README.md"} <= set(re.findall(r"\]\(([^)]+)\)", index))
    used = {block.figure for name in WITH_CODE for block in build.blocks((DOCS / name).read_text()) if block.figure}
    for name in PAGES:  # and pictures of runs too long for a page
        used |= set(re.findall(r"^!\[[^\]]*\]\(figures/([^)]+)\)", (DOCS / name).read_text(), re.MULTILINE))
    used |= set(re.findall(r"/docs/figures/([^)]+)\)", (DOCS.parent / "README.md").read_text()))
    assert {path.name for path in (DOCS / "figures").iterdir()} == used


@pytest.mark.slow
def test_the_readme_runs():
    """Run the README's Python as it stands."""
    text = (DOCS.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"print": lambda *values: None}
    exec(compile(code, "README.md", "exec"), names)
    assert names["x"].shape == (1000, 2)
    assert names["x"].isfinite().all()


def test_the_readmes_links_are_absolute_and_lead_somewhere():
    """Check that the README's links are absolute and their targets exist.

    The package index shows the README, where a relative link would lead nowhere.
    """
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS.parent / "README.md").read_text()):
        assert target.startswith("https://"), target
        if target.startswith(REPOSITORY):
            kind, branch, path = target.removeprefix(REPOSITORY).split("/", 2)
            assert (kind, branch) == ("raw" if path.endswith(".png") else "blob", "main"), target
            assert (DOCS.parent / path.partition("#")[0]).exists(), target


def _page(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    return page


def test_blocks_share_a_namespace_and_outputs_are_rewritten(tmp_path):
    text = "A\n\n```python\na = 2\n```\n\nB\n\n```python\nprint(a)\n```\n\n```text\n3\n```\n\nC\n"
    page = _page(tmp_path, text)
    results = build.run(page, tmp_path)
    assert [(block.output, printed) for block, printed in results] == [(None, ""), ("3\n", "2\n")]
    assert build.rewritten(text, results) == text.replace("\n3\n", "\n2\n")


def test_a_missing_output_is_put_in_and_a_stale_one_taken_out(tmp_path):
    text = "```python\nprint(1)\n```\n\nA\n\n```python\na = 1\n```\n\n```text\nold\n```\n"
    results = build.run(_page(tmp_path, text), tmp_path)
    assert build.rewritten(text, results) == (
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\nA\n\n```python\na = 1\n```\n"
    )


def test_a_figure_is_drawn_into_the_given_folder(tmp_path):
    code = "from matplotlib.figure import Figure\nfigure = Figure(figsize=(2, 1))\nfigure.subplots().plot([1, 2])\n"
    build.run(_page(tmp_path, f"```python figure=line.png\n{code}```\n"), tmp_path)
    assert (tmp_path / "line.png").read_bytes()[:4] == b"\x89PNG"


def test_a_failing_block_is_named_by_page_and_line(tmp_path):
    with pytest.raises(RuntimeError, match=r"page\.md, the block at line 4: ZeroDivisionError"):
        build.run(_page(tmp_path, "A\n\n```python\n1 / 0\n```\n"), tmp_path)
