"""What a change does to each replica, as the daemon answers it and views show it."""

import msgspec


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `kind` is unchanged, live, restart, add or remove; `why`: a line for each key.

    `live`: only what the daemon does about it changes; its processes don't notice.
    """

    replica: str
    kind: str
    why: list[str] = []


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `up`, `scale` and `difference`. `adopted`: the topology was up already."""

    topology: str
    adopted: bool
    changes: list[Change] = []
