"""The acceptance statements of the supervision policy: each has a test that is named after it."""

import re
from pathlib import Path

STATEMENTS = 67
NAME = re.compile(r"^def test_statement_(\d\d)_", re.MULTILINE)

ROW = re.compile(r"^\| (\d+) \| \S", re.MULTILINE)


def test_every_statement_has_a_test_named_after_it(request):
    tests = Path(request.config.rootpath, "tests")
    found = {
        int(number)
        for path in tests.rglob("test_*.py")
        for number in NAME.findall(path.read_text())
    }
    assert found == set(range(1, STATEMENTS + 1))


def test_the_page_has_each_statement_once_and_in_order(request):
    page = Path(request.config.rootpath, "docs", "statements.md").read_text()
    assert [int(number) for number in ROW.findall(page)] == list(range(1, STATEMENTS + 1))
