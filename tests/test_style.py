"""The rules in CONTRIBUTING.md that a machine can check.

First lines, words, lengths of sentences and of functions.
"""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_LINE = 72  # characters, with the quotes left out
SENTENCE = 25  # words
FUNCTION = 70  # lines, the docstring left out
UNCOMMENTED = 30  # lines that a function may have without a comment, the docstring left out
#: words that stand for a better one; see the fourth rule
WORDS = re.compile(
    r"\b(is told|are told|be told|is asked|are asked|asked for|so many|no such|likewise|anew|beyond|of its own|"
    r"of their own|of one's own|stands still|comes beside)\b",
    re.IGNORECASE,
)
NOUN_STARTS = {"The", "A", "An", "Whether", "What", "How", "Where"}
FOLDERS = ["scoresde", "benchmarks", "tests", "docs"]


def name(path):
    return str(path.relative_to(ROOT))


def files(folder):
    """Yield the Python files of a folder but this one, which lists the words."""
    yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__))


@cache
def nodes(path):
    """Return the modules, classes and functions of a file, with their docstrings."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return [(n, ast.get_docstring(n)) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, kinds)]


def documented(path):
    """Yield the nodes of a file that have a docstring, with it."""
    yield from ((node, text) for node, text in nodes(path) if text)


def functions(path):
    """Yield the functions of a file, with their lengths in lines."""
    for node, text in nodes(path):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if text else node.body
            yield node, (body[-1].end_lineno - body[0].lineno + 1 if body else 0)


def is_property(node):
    return any("property" in ast.unparse(d) or "setter" in ast.unparse(d) for d in node.decorator_list)


def prose(text):
    """Yield the sentences of a text.

    Formulas, code, tables and lists of names are left out.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    for paragraph in paragraphs:
        lines = [line.strip() for line in paragraph.splitlines()]
        if any(re.match(r"(\||===|>>>|\.\. |[-=]{4,}|scoresde )", line) for line in lines) or text.find("::\n\n") >= 0:
            continue
        words = re.sub(r"``[^`]*``|:\w+:`[^`]*`|`[^`]*`|\([^()]*\)|\[[^\]]*\]", " X ", " ".join(lines))
        yield from re.split(r"(?<=[.:;?!])\s+|(?:^|\s)- ", words)


def comments(path):
    """Return the numbers of the lines that have a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


@pytest.mark.parametrize("folder", FOLDERS)
def test_first_lines_stand_alone(folder):
    wrong = []
    for path in files(folder):
        for node, text in documented(path):
            first = text.splitlines()[0]
            where = f"{name(path)}:{getattr(node, 'lineno', 1)} "
            if len(first) > FIRST_LINE:
                wrong.append(f"{where}{len(first)} characters: {first}")
            if not first.endswith((".", "?", ":", "!")):
                wrong.append(f"{where}does not end: {first}")
            if first.split()[0] in NOUN_STARTS and isinstance(node, ast.FunctionDef) and not is_property(node):
                wrong.append(f"{where}a function does something: {first}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", FOLDERS)
def test_sentences_are_short(folder):
    wrong = []
    for path in files(folder):
        for node, text in documented(path):
            for sentence in prose(text):
                words = [w for w in sentence.split() if re.search(r"[A-Za-z]{2,}", w)]
                if len(words) > SENTENCE:
                    where = f"{name(path)}:{getattr(node, 'lineno', 1)}"
                    wrong.append(f"{where} {len(words)} words: {' '.join(words)[:100]}...")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", FOLDERS)
def test_words_are_those_of_the_field(folder):
    wrong = []
    for path in files(folder):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            wrong += [f"{name(path)}:{number} {found[0]!r}" for found in WORDS.finditer(line)]
    assert not wrong, "\n".join(wrong)


def test_functions_are_short_or_commented():
    wrong = []
    for path in files("scoresde"):
        for node, length in functions(path):
            if length > FUNCTION:
                wrong.append(f"{name(path)}:{node.lineno} {node.name}: {length} lines")
            elif length > UNCOMMENTED and comments(path).isdisjoint(range(node.lineno, node.end_lineno + 1)):
                wrong.append(f"{name(path)}:{node.lineno} {node.name}: {length} lines without a comment")
    assert not wrong, "\n".join(wrong)


def test_the_checks_can_fail(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text('def f():\n    """The thing of which so many are beyond reach"""\n')
    for node, text in documented(path):
        assert text.split()[0] in NOUN_STARTS
        assert isinstance(node, ast.FunctionDef)
    assert [found[0] for found in WORDS.finditer(path.read_text())] == ["so many", "beyond"]
    assert max(len(s.split()) for s in prose("One two three. " + "word " * 30 + ".")) > SENTENCE
