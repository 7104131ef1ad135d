"""The report: one file with escaped text, without scripts.

It embeds everything that it shows.
"""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scoresde.app.plots import image_grid, moving_images
from scoresde.app.report import Report, _rounded
from scoresde.errors import ArgumentError

PICTURES = [image_grid(np.random.default_rng(seed).random((n, 1, 4, 4))) for seed, n in ((0, 1), (1, 4))]
VOID = {"meta", "img", "br", "link", "hr", "source"}


class Page(HTMLParser):
    """A parsed page: its tags and text.

    Every tag must be closed in order.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report():
    return (
        Report("A <title> & more", 'sub "title" with `code`')
        .figures_of_merit([("held-out", 2.01372, 0.0214, "bits/dim", "360 images"), ("steps", 2000, None, "", "")])
        .section("One <b>", "first paragraph\n\nsecond & last")
        .figure(PICTURES[0], "caption <i>", 'alt "quoted"')
        .figure(PICTURES[1], "second", "more")
        .section("Two")
        .table(["set", "bits/dim"], [["digits <x>", 2.0], ["inverted", "7.1 ± 0.1"]], "a table & caption")
        .section("Three")
        .commands([("Go <on>:", "scoresde sample runs/a --n 4 && echo '<done>'")])
    )


def test_all_pictures_are_embedded_unchanged(report):
    images = Page(report.html()).all("img")
    data = [base64.b64decode(i["src"].removeprefix("data:image/png;base64,"), validate=True) for i in images]
    assert data == PICTURES
    assert [i["alt"] for i in images] == ['alt "quoted"', "more"]
    assert all(int(i["width"]) > 0 and int(i["height"]) > 0 for i in images)


def test_nothing_external_and_nothing_executable(report):
    text = report.html()
    page = Page(text)
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:|\son\w+=", outside)
    assert not page.all("script")
    assert not page.all("link")
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert any("default-src 'none'" in m.get("content", "") for m in page.all("meta"))


def test_text_is_escaped_and_survives(report):
    text = report.html()
    page = Page(text)
    words = "".join(page.words)
    for piece in ("A <title> & more", "One <b>", "second & last", "caption <i>", "digits <x>", "Go <on>:"):
        assert piece in words
    assert "scoresde sample runs/a --n 4 && echo '<done>'" in words
    for tag in ("b", "i", "x", "on", "done"):
        assert not page.all(tag)
    assert "<code>code</code>" in text


def test_structure_is_semantic(report):
    page = Page(report.html())
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(page.all("section")) == 3
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert [a["href"][1:] for a in page.all("a")] == [h["id"] for h in page.all("h2")]
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert len(page.all("figcaption")) == len(page.all("figure")) == 2
    assert all(th["scope"] in ("col", "row") for th in page.all("th"))
    scroll = [d for d in page.all("div") if d.get("class") == "scroll"]
    assert [d["tabindex"] for d in scroll] == ["0"]
    assert len([d for d in page.all("div") if d.get("class") == "figures"]) == 1


def test_responsive_dark_and_print_styles_are_there(report):
    text = report.html()
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_empty_report_is_a_page():
    assert "just a title" in "".join(Page(Report("just a title").html()).words)


@pytest.mark.parametrize(
    ("value", "stderr", "expected"),
    [
        (2.01372, 0.0214, ("2.014", "0.021")),
        (2.01372, None, ("2.014", "")),
        (1234.6, 12.3, ("1235", "12")),
        (2.0, 0.0, ("2", "0")),
        (float("nan"), None, ("nan", "")),
        (2000, None, ("2000", "")),
        ("3 min", None, ("3 min", "")),
    ],
)
def test_values_are_rounded_to_their_error(value, stderr, expected):
    assert _rounded(value, stderr) == expected


def test_numeric_columns_are_flush_right(report):
    cells = Page(report.html()).all("td")
    assert [c.get("class") for c in cells] == ["n", "n"]


def test_bad_input_is_named():
    report = Report("t")
    with pytest.raises(ArgumentError, match=r"`png` must be .*, got 3 other bytes"):
        report.figure(b"GIF", "c", "a")
    with pytest.raises(ArgumentError, match="alt"):
        report.figure(PICTURES[0], "c", " ")
    with pytest.raises(ArgumentError, match=r"`rows\[1\]` must be .*, got 1 cells"):
        report.table(["a", "b"], [[1, 2], [3]], "c")


def test_write_replaces_whole_or_not_at_all(report, tmp_path, monkeypatch):
    path = Report("old").write(tmp_path / "report.html")
    old = path.read_text(encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space"):
            report.write(path)
    assert path.read_text(encoding="utf-8") == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert report.write(path).read_text(encoding="utf-8") == report.html()


def test_an_animation_stands_still_where_less_motion_is_wanted():
    gif, still = moving_images([np.full((1, 1, 4, 4), grey) for grey in (0.0, 1.0)])
    text = Report("title").animation(gif, still, "caption", "alt").html()
    page = Page(text)
    (image,), (source,) = page.all("img"), page.all("source")
    assert base64.b64decode(image["src"].removeprefix("data:image/gif;base64,")) == gif
    assert source["media"] == "(prefers-reduced-motion: reduce)"
    assert base64.b64decode(source["srcset"].removeprefix("data:image/png;base64,")) == still
    for arguments in ((still, still, "c", "a"), (gif, gif, "c", "a"), (gif, still, "c", " ")):
        with pytest.raises(ArgumentError):
            Report("title").animation(*arguments)


def test_plots_follow_a_dark_page_and_images_do_not():
    text = Report("title").figure(PICTURES[0], "c", "a", plot=True).figure(PICTURES[1], "c", "a").html()
    assert [figure.get("class") for figure in Page(text).all("figure")] == ["plot", None]
    assert re.search(
        r"prefers-color-scheme: dark\) \{\s*figure\.plot .*?figure\.plot img \{ filter: invert", text, re.DOTALL
    )
