"""The texts are true: links lead somewhere, and the verbs and topologies that they name exist."""

import re
from pathlib import Path

import pytest
import typer

from orchestrator.cli.main import app
from orchestrator.topology.load import load

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(text):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text.read_text())
    assert [link for link in links if not (text.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in readme] == []


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_verbs_that_are_named_exist(text):
    verbs = set(typer.main.get_command(app).commands)
    named = re.findall(r"(?:^|`)(?:\S*bin/)?dynorch ([a-z]+)", text.read_text(), re.MULTILINE)
    assert set(named) <= verbs


def test_the_readmes_topology_is_valid(tmp_path):
    (found,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "readme.toml"
    file.write_text(found)
    assert load(file, {}).name == "chat"
