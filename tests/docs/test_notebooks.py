"""The pages as notebooks: every block of code, its output and its figure."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load(name):
    specification = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


build, notebooks = load("build"), load("notebooks")


@pytest.mark.parametrize("page", build.pages(), ids=lambda page: page.stem)
def test_a_notebook_has_the_code_and_what_it_shows(page):
    found = notebooks.notebook(page)
    cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert cells[0]["source"].startswith("%matplotlib inline")
    blocks = list(build.blocks(page.read_text()))
    assert len(cells) == len(blocks) + 1
    for cell, block in zip(cells[1:], blocks, strict=True):
        code = block.code.rstrip()
        assert cell["source"] == (f"{code}\nfigure" if (block.figure or "").endswith("png") else code)
        printed = "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
        assert printed == (block.output or "")
        pictures = [output["data"] for output in cell["outputs"] if output["output_type"] == "display_data"]
        assert len(pictures) == bool(block.figure)
        for picture in pictures:
            (data,) = picture.values()
            assert base64.b64decode(data) == (DOCS / "figures" / block.figure).read_bytes()
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(len(one) <= 64 for one in ids)


def test_text_is_in_the_dialect_of_notebooks():
    for page in build.pages():
        for cell in notebooks.notebook(page)["cells"]:
            if cell["cell_type"] == "markdown":
                assert "```math" not in cell["source"]
                assert "$`" not in cell["source"]
                assert "](figures/" not in cell["source"]


def test_notebooks_are_written(tmp_path, capsys):
    notebooks.main([str(tmp_path / "new"), str(DOCS / "your_own_sde.md")])
    (path,) = (tmp_path / "new").iterdir()
    assert str(path) in capsys.readouterr().out
    assert json.loads(path.read_text())["nbformat"] == 4
