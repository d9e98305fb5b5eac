"""One member's process tree with its shim, and what it will do, drawn once, at its birth."""

from dataclasses import dataclass, field

from orchestrator.core import events as e

FOREVER = 1e12


@dataclass
class Plan:
    birth_s: float = 0.01
    birth_error: tuple[str, str] | None = None
    ready_s: float = 2.0
    start_exit: tuple[float, int] | None = None
    run_end: tuple[float, str, int] | None = None
    obeys_s: float = 0.1
    swallows_term_while_loading: bool = False
    rest_s: float = 0.0
    kill_s: float = 0.02
    reap_s: float = 0.0
    tail: str = ""
    exec_error: str = ""
    bye: tuple[str, str] | None = None
    works_to_an_end: bool = False
    asks_more_s: float = 0.0
    asks_at_end_s: float = 0.0
    frees_s: float = 0.0


@dataclass
class Life:
    replica: str
    member: int
    incarnation: int
    plan: Plan
    born: bool = False
    born_at: float = FOREVER
    shim: bool = False
    main: bool = False
    rest: bool = False
    ready: bool = False
    died_at: float = FOREVER
    frozen_at: float = FOREVER
    status: int | None = None
    record: e.ExitFacts | None = None
    terms: int = 0
    grace_ends: float = FOREVER
    told: set = field(default_factory=set)
    killed: bool = False
    gone: bool = False
    removed: bool = False

    @property
    def alive(self) -> bool:
        return self.main or self.rest
