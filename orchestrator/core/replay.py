"""The journal, decided again: what was recorded of each step, and whether it comes out the same.

A step is a function of state, event, time and policy, so a journal that has these can be run again,
on another machine and years later, under a debugger if need be. Event and actions are in each
record; the state and the policy, which are larger and seldom needed, only where nothing before them
could be gone on from: at a replica's first step under a daemon, when its policy or its state was
changed from outside, and when the journal began a new file or had lost a line. What lies between
two records is checked by checksums of the state before and after.
"""

import zlib

import msgspec
from msgspec.structs import replace

from orchestrator.core.actions import Action
from orchestrator.core.events import Event, kebab
from orchestrator.core.policy import Policy
from orchestrator.core.replica import step
from orchestrator.core.state import State, encode

WRONG_MAX = 100
"""Differences that are told; all are counted."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of one replica. `was` and `became`: checksums of the state before and after.

    `state` (before) and `policy` are there where a replay can begin. `crowded` stands in for the
    policy's, which changes from step to step.
    """

    now: float
    event: Event
    actions: tuple[Action, ...]
    was: int
    became: int
    crowded: bool = False
    state: State | None = None
    policy: Policy | None = None


def checksum(state: State) -> int:
    """Tell two states apart."""
    return zlib.crc32(encode(state))


class Recorder:
    """Writes down steps, each with as much as a replay needs at that point."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[State, Policy, int]] = {}

    def decision(
        self,
        before: State,
        after: State,
        *,
        event: Event,
        actions: tuple[Action, ...],
        now: float,
        policy: Policy,
        generation: int,
    ) -> Decision:
        """Describe one step. `generation`: a number that changes when lines may be missing."""
        base = replace(policy, crowded=False)
        last = self._known.get(before.name)
        goes_on = last is not None and last[0] is before and last[1:] == (base, generation)
        self._known[before.name] = after, base, generation
        return Decision(
            now=now, event=event, actions=actions, crowded=policy.crowded,
            was=checksum(before), became=checksum(after),
            state=None if goes_on else before, policy=None if goes_on else base,
        )  # fmt: skip

    def forget(self, name: str) -> None:
        """This replica is no more."""
        self._known.pop(name, None)


class Replay:
    """Runs decisions again, in the order of the journal. `wrong` says what came out otherwise."""

    def __init__(self) -> None:
        self.checked = 0
        self.skipped = 0
        self.differences = 0
        self.wrong: list[str] = []
        self.states: dict[str, State] = {}
        self._policies: dict[str, Policy] = {}

    def take(self, name: str, decision: Decision) -> None:
        """Check one; skipped are those to which no state leads."""
        if decision.state is not None and decision.policy is not None:
            self.states[name], self._policies[name] = decision.state, decision.policy
        before = self.states.get(name)
        if before is None or checksum(before) != decision.was:
            self.skipped += 1
            self.states.pop(name, None)
            return
        self.checked += 1
        policy = replace(self._policies[name], crowded=decision.crowded)
        try:
            after, actions = step(before, decision.event, decision.now, policy)
        except AssertionError as impossible:
            self._differs(name, decision, f"now it is impossible: {impossible}")
            return
        if actions != decision.actions:
            was, now = list(map(str, decision.actions)), list(map(str, actions))
            self._differs(name, decision, f"ordered {was}, now {now}")
        elif checksum(after) != decision.became:
            self._differs(name, decision, f"led to another state; now to {after}")
        else:
            self.states[name] = after

    def _differs(self, name: str, decision: Decision, how: str) -> None:
        self.differences += 1
        self.states.pop(name, None)
        if len(self.wrong) < WRONG_MAX:
            what = kebab(type(decision.event).__name__)
            self.wrong.append(f"{name} at {decision.now:.3f} s: {what} {how}")
