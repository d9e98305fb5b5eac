"""docs/topology.md says what the schema says, docs/failures.md what the failure table does."""

from pathlib import Path

from orchestrator.core import failure_page
from orchestrator.core.reasons import Cause
from orchestrator.topology.reference import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_what_the_schema_says():
    page = (DOCS / "topology.md").read_text(encoding="utf-8")
    assert page == reference(), "python -m orchestrator.topology.reference > docs/topology.md"


def test_the_page_of_failures_is_what_the_table_says():
    page = (DOCS / "failures.md").read_text(encoding="utf-8")
    how = "python -m orchestrator.core.failure_page > docs/failures.md"
    assert page == failure_page.page(), how


def test_the_page_of_failures_explains_every_class():
    waits = {"ok", "requested", "completed", "backoff", "unready", "peer", "dependency"}
    waits |= {"interrupted", "unkillable"}
    named = {cause for cause in Cause if cause.value not in waits}
    named = {cause for cause in named if not cause.value.startswith("waiting")}
    assert named <= set(failure_page.MEANINGS)
