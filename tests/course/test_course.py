"""The labs: their solutions pass, their slips get the right hint."""

import ast
import json

import pytest
import torch

from scoresde.course import check, parts, start
from scoresde.course.checks import LABS, TASKS
from scoresde.course.notebooks import blank, cells, lab_files, notebook
from scoresde.errors import ArgumentError, DTypeError, UnknownNameError

SLIPS = [(task, slip) for task in TASKS for slip in task.slips]


def solutions(lab):
    """Return a lab's solutions by name, from its file."""
    names = {}
    for cell in cells(lab_files()[lab]):
        if cell.kind == "solution":
            exec(cell.source, names | {"torch": torch}, names)
    return names


def test_there_are_ten_labs_with_parts_and_slips():
    assert tuple(lab_files()) == LABS == tuple(range(1, 11))
    for lab in LABS:
        assert len(parts(lab)) >= 2
        assert sum(len(task.slips) for task in TASKS if task.lab == lab) >= 3
        assert tuple(solutions(lab)) == parts(lab)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.lab}-{task.name}")
def test_every_solution_passes(task):
    answer = solutions(task.lab)[task.name]
    answer.__globals__["torch"] = torch
    verdict = check(task.lab, answer)
    assert verdict.passed, verdict
    assert verdict.part == task.name
    assert verdict.error < 1e-9


@pytest.mark.parametrize(("task", "slip"), SLIPS, ids=lambda one: getattr(one, "name", None))
def test_every_slip_gets_its_hint(task, slip):
    verdict = check(task.lab, slip.answer, task.name)
    assert not verdict.passed
    assert verdict.message == slip.hint


def test_other_wrong_answers_are_described():
    right = solutions(1)["step"]
    assert "The sign" in check(1, lambda *a: -right(*a), "step").message
    assert "factor of 2" in check(1, lambda *a: 2 * right(*a), "step").message
    assert "differs" in check(1, lambda x, beta, z: x + z, "step").message
    assert "NaN" in check(1, lambda x, beta, z: x / 0 * 0, "step").message
    assert "ZeroDivisionError" in check(1, lambda x, beta, z: 1 / 0, "step").message
    assert "step(x, beta, z)" in check(1, lambda x: x, "step").message
    assert "numbers" in check(1, lambda x, beta, z: x.sum(), "step").message
    assert repr(check(1, right, "step")).startswith("Lab 1, step: right.")


def test_wrong_calls_are_refused():
    with pytest.raises(UnknownNameError, match="lab"):
        check(11, lambda: 0)
    with pytest.raises(UnknownNameError, match="'jump'"):
        check(1, lambda: 0, "jmup")
    with pytest.raises(DTypeError, match="a function"):
        check(1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("lab", LABS)
def test_the_solved_notebook_runs(lab, monkeypatch):
    """Run every cell of code, and see that all checks pass."""
    import matplotlib

    matplotlib.use("agg")
    names, verdicts = {"__name__": f"lab{lab}"}, []
    for cell in notebook(lab, solved=True)["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(cell["source"])
        if cell["source"].startswith("check("):
            verdicts.append(eval(cell["source"], names))
        else:
            exec(compile(tree, f"lab {lab}", "exec"), names)
    assert [verdict.passed for verdict in verdicts] == [True] * len(parts(lab))


def test_students_get_blanks(tmp_path):
    written = start(tmp_path / "course", solutions=True)
    assert len(written) == 20
    for path in written:
        content = json.loads(path.read_text())
        code = "\n".join(cell["source"] for cell in content["cells"] if cell["cell_type"] == "code")
        ast.parse(code)
        assert ("NotImplementedError" in code) == (path.parent.name == "course")
        assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
        assert "`$" not in "".join(cell["source"] for cell in content["cells"] if cell["cell_type"] == "markdown")
    with pytest.raises(ArgumentError, match="an empty folder"):
        start(tmp_path / "course")
    assert blank('def f(x):\n    """Return x."""\n    y = x\n    return y') == (
        'def f(x):\n    """Return x."""\n    raise NotImplementedError  # your code'
    )
