"""Files that are wrong in one way each, and the one sentence that says so.

Each begins with a comment: the complaint as it must be, from the line number on.
"""

import re
from pathlib import Path

import pytest
import typer

from orchestrator.cli import files
from orchestrator.topology.load import Invalid, load

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.toml"))


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_one_mistake_is_one_sentence_with_its_place_and_what_would_be_right(path):
    says = path.read_text().partition("\n")[0].removeprefix("# ")
    with pytest.raises(Invalid) as invalid:
        load(path, {})
    assert list(map(str, invalid.value.complaints)) == [f"{path}:{says}"]
    assert re.fullmatch(r"\d+: [a-z_A-Z.0-9\[\]-]+: .+; .+", says)


def test_there_are_many_of_them():
    assert len(BROKEN) >= 30


def test_an_operator_reads_all_of_it_and_nothing_was_started(capsys):
    path = BROKEN[0]
    with pytest.raises(typer.Exit) as refused:
        files.validate(path)
    says = path.read_text().partition("\n")[0].removeprefix("# ")
    assert refused.value.exit_code == 2
    assert capsys.readouterr().err == (f"{path}:{says}\n{path}: 1 mistake; nothing was started\n")
