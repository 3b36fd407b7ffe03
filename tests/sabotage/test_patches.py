"""The patches of `make sabotage` still apply, each has its test, and what counts as red is what should."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from sabotage.patch import Patch
from sabotage.patches import PATCHES
from sabotage.run import ROOT, Run, main, plan, sabotaged

LEAST = 30


@cache
def functions(file: str) -> dict[str, bool]:
    """The tests of a file, and whether they have parameters."""
    found = {}
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = any("parametrize" in ast.unparse(one) for one in node.decorator_list)
    return found


def test_there_are_enough_of_them_and_each_is_of_another_promise():
    promises = {patch.promise for patch in PATCHES}
    assert len(PATCHES) == len(promises) >= LEAST and len({(one.file, one.old, one.new) for one in PATCHES}) == len(PATCHES)
    assert all(promise.endswith(".") for promise in promises)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.promise)
def test_it_applies_once_and_its_test_is_there(patch: Patch):
    text = (ROOT / patch.file).read_text(encoding="utf-8")
    assert text.count(patch.old) == 1, f"{patch.file} has this {text.count(patch.old)} times: {patch.old!r}"
    ast.parse(text.replace(patch.old, patch.new))
    file, _, name = patch.test.partition("::")
    function, bracket, case = name.partition("[")
    assert function in functions(file), f"{file} has no {function}"
    assert not bracket or (case.endswith("]") and functions(file)[function]), f"{function} has no case {case}"


PATCH = Patch("A promise.", "a.py", "x = 1", "x = 2", "tests/test_a.py::test_x")
RED = {"passed": [], "skipped": [], "failed": {"tests/test_a.py::test_x[1]": "AssertionError"}, "broken": []}


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (RED, "red"),
        ({**RED, "failed": {}, "passed": ["tests/test_a.py::test_x"]}, "NOT RED"),
        ({**RED, "failed": {"tests/test_a.py::test_x2": "AssertionError"}}, "NOT RED"),
        ({**RED, "broken": ["ImportError"]}, "NOT RED: it could not be run"),
        ({**RED, "failed": {"tests/test_a.py::test_x": "E   NameError: name 'y' is not defined"}}, "NOT RED: the patch is no program"),
    ],
)
def test_a_failed_assertion_is_red_and_nothing_else_is(told, verdict):
    assert Run(PATCH, [PATCH.test], Path("nowhere"), told=told).verdict == verdict


def test_what_is_skipped_or_not_there_is_not_green():
    for told in ({**RED, "failed": {}}, {**RED, "failed": {}, "skipped": ["tests/test_a.py::test_x"]}, RED):
        assert not Run(None, [PATCH.test], Path("nowhere"), told=told).green(PATCH.test)
    assert Run(None, [PATCH.test], Path("nowhere"), told={**RED, "failed": {}, "passed": [PATCH.test]}).green(PATCH.test)


def test_a_patch_changes_one_file_of_the_copy_or_nothing_is_tested(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    sabotaged(tmp_path, PATCH)
    assert (tmp_path / "a.py").read_text() == "x = 2\n"
    with pytest.raises(AssertionError, match="a.py: 0 x 'x = 1'"):
        sabotaged(tmp_path, PATCH)


def test_each_file_of_tests_runs_once_without_a_patch(tmp_path):
    runs = plan(PATCHES, tmp_path)
    assert len(runs) == len(PATCHES) + len({patch.test.split("::")[0] for patch in PATCHES})
    assert {test for run in runs if run.patch is None for test in run.tests} == {patch.test for patch in PATCHES}


def test_a_word_that_no_patch_has(capsys):
    assert main(["--only", "no such word"]) == 2
    assert "no patch has 'no such word'" in capsys.readouterr().err
