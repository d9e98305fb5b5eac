"""The replica machine."""

from orchestrator.core.actions import Action
from orchestrator.core.events import Event
from orchestrator.core.policy import Policy
from orchestrator.core.state import State


def step(
    state: State, event: Event, now: float, policy: Policy
) -> tuple[State, tuple[Action, ...]]:
    """Decide the next state, and what is to be done."""
    raise NotImplementedError
