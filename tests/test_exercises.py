"""Every exercise of every notebook: the stub fails with a hint, the solution passes.

Each folded wrong answer is caught by an assertion. Stub, check and solution may use what the
notebook imports, what its module exports, `settings`, and cells tagged `setup`. Nothing else is
run, so a training notebook's exercises are tested in a moment.
"""

import ast
import functools
import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from vidcourse.course import (
    Exercise,
    Settings,
    Verdict,
    find_exercises,
    untouched,
    with_solutions,
)

NOTEBOOKS = sorted((Path(__file__).parent.parent / "nbs").glob("[0-9]*.ipynb"))
PAGES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}
CASES = [
    pytest.param(name, found, id=f"{name}-{found.index}")
    for name, page in PAGES.items()
    for found in find_exercises(page)
]


def python(cell):
    "A code cell's source without magics."
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)


def context(page, stop):
    "The names that an exercise may use."
    names = {"settings": Settings("smoke", torch.device("cpu"), 0)}
    code = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    module = next(
        (
            m[1]
            for cell in code
            if (m := re.search(r"#\|\s*default_exp\s+(\S+)", "".join(cell["source"])))
        ),
        None,
    )
    if module:
        names.update(
            {
                k: v
                for k, v in vars(importlib.import_module(f"vidcourse.{module}")).items()
                if not k.startswith("__")
            }
        )
    for cell in page["cells"][:stop]:
        if cell["cell_type"] != "code":
            continue
        if "setup" in cell.get("metadata", {}).get("tags", []):
            exec(python(cell), names)
            continue
        lines = [
            node
            for node in ast.parse(python(cell)).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        exec(compile(ast.Module(lines, []), "imports", "exec"), names)
    return names


def outcome(page, found, answer):
    "Run the answer, then the check; the value of the check's last line."
    names = context(page, found.index)
    exec(answer, names)
    body = ast.parse(found.check).body
    assert isinstance(body[-1], ast.Expr), "the last line of a check cell must be the call"
    exec(compile(ast.Module(body[:-1], []), "check", "exec"), names)
    return eval(compile(ast.Expression(body[-1].value), "check", "eval"), names)


@pytest.mark.parametrize("name, found", CASES)
def test_stub_fails_with_a_hint(name, found, capsys):
    assert outcome(PAGES[name], found, found.stub) is False
    said = capsys.readouterr().out.split("not yet:")[1]
    assert "still a stub: " in said and "raised" not in said and len(said.strip()) > 10


@pytest.mark.parametrize("name, found", CASES)
def test_solution_passes(name, found, capsys):
    assert outcome(PAGES[name], found, found.solution) is True, capsys.readouterr().out


@pytest.mark.parametrize("name, found", [case for case in CASES if case.values[1].wrong])
def test_wrong_answers_are_caught_by_an_assertion(name, found, capsys):
    for wrong in found.wrong:
        assert outcome(PAGES[name], found, wrong) is False
        assert "raised" not in capsys.readouterr().out, "a hint, not a crash"


def is_engine_room(page):
    "Does a notebook say of itself, in its opening lines, that it may be skipped?"
    opening = next(cell for cell in page["cells"] if cell["cell_type"] == "markdown")
    return "engine room" in "".join(opening["source"]).lower()


@pytest.mark.parametrize("name", PAGES)
def test_every_lesson_has_exercises(name):
    fewest = 0 if is_engine_room(PAGES[name]) else 2
    assert fewest <= len(find_exercises(PAGES[name])) <= 4


@pytest.mark.parametrize("name", PAGES)
def test_tags_belong_together(name):
    tags = [
        tag for cell in PAGES[name]["cells"] for tag in cell.get("metadata", {}).get("tags", [])
    ]
    assert tags.count("exercise") == tags.count("check"), (
        "each stub has one check and each check one stub"
    )


def test_solutions_can_be_put_in():
    page = PAGES["00_start_here"]
    solved = with_solutions(page)
    assert len(solved["cells"]) == len(page["cells"])
    for found in find_exercises(page):
        assert solved["cells"][found.index]["source"] == found.solution
        assert outcome(solved, found, solved["cells"][found.index]["source"]) is True


def cell(kind, source, *tags):
    return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}}


STUB, CHECK = cell("code", "def f(): ...", "exercise"), cell("code", "check(f)", "check")
FOLDED = cell(
    "markdown",
    "<details><summary>Solution</summary>\n\n```python\ndef f(): return 1\n```\n</details>",
)


@pytest.mark.parametrize(
    "cells",
    [
        [STUB],
        [STUB, FOLDED],
        [STUB, CHECK],
        [STUB, CHECK, STUB, CHECK, FOLDED],
        [STUB, CHECK, FOLDED, FOLDED],
    ],
)
def test_incomplete_exercises_are_refused(cells):
    with pytest.raises(ValueError, match="each is needed once"):
        find_exercises({"cells": cells})


def test_complete_exercises_are_found():
    found = find_exercises(
        {"cells": [STUB, CHECK, FOLDED, cell("markdown", "text"), STUB, CHECK, FOLDED]}
    )
    assert [f.index for f in found] == [0, 4] and found[1].solution == "def f(): return 1\n"


def test_an_exercise_never_raises(capsys):
    def check(answer):
        assert answer() == 1, "it should be one"

    task = Exercise("one", check, hint="count")
    assert task.check(lambda: 1) is True and "solved" in capsys.readouterr().out
    assert (
        task(lambda: 2) is False
        and "it should be one" in (out := capsys.readouterr().out)
        and "hint: count" in out
    )
    for broken in (None, lambda: 1 / 0, lambda x: x):
        assert task(broken) is False and "raised" in capsys.readouterr().out


def test_an_untouched_stub_is_told_from_an_answer(capsys):
    def dots(x): ...
    def text(x, y=1, *more):
        "What it should do."

    def both(x):
        """What it should do."""

    def refuses(x):
        raise NotImplementedError("write this")

    def five(x):
        return 5

    def same(x):
        return x

    def works(x):
        x + 1

    task = Exercise("task", lambda answer: answer(1), hint="think")
    for stub in (dots, text, both, refuses, functools.wraps(dots)(lambda *a: dots(*a))):
        assert task(stub) is False
        assert "still a stub: " in (out := capsys.readouterr().out) and "hint: think" in out
    for answer in (five, same, works, len, abs):
        assert not untouched(answer)
    assert task(five) is True and "solved" in capsys.readouterr().out


def test_a_verdict_is_true_or_false_and_shows_nothing(monkeypatch, capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell, task = InteractiveShell(), Exercise("task", lambda answer: None)
    assert task(1) is True
    monkeypatch.setattr("vidcourse.course.get_ipython", lambda: shell)
    passed = task(1)
    assert isinstance(passed, Verdict) and passed and repr(passed) == "True"
    assert int(passed) == 1 and not Verdict(False)
    assert shell.display_formatter.format(passed) == ({}, {})
    assert shell.display_formatter.format(1)[0]
