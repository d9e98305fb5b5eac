"""docs/topology.md says what the schema says."""

from pathlib import Path

from orchestrator.topology.reference import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_what_the_schema_says():
    page = (DOCS / "topology.md").read_text(encoding="utf-8")
    assert page == reference(), "python -m orchestrator.topology.reference > docs/topology.md"
