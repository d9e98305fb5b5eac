"""Roles and processes that belong together: what the failure of one means for the others."""

from typing import Literal

from pydantic import Field

from orchestrator.topology.table import Strings, Table


class Group(Table):
    """`[groups.NAME]`."""

    members: Strings = Field(
        description="Roles and processes, in the order of their starts under `rest-for-one`."
    )
    strategy: Literal["one-for-one", "one-for-all", "rest-for-one"] = Field(
        description="What happens when one fails. one-for-one: it restarts alone. one-for-all: all "
        "restart. rest-for-one: it restarts, and those after it in the list.",
    )

    def before(self, member: str) -> set[str]:
        """Those that come before this member in the list."""
        return set(self.members[: self.members.index(member)])
