"""Groups and dependants, in the daemon's loop with made-up processes: who goes down with whom."""

import random

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core import groups
from orchestrator.core.difference import difference
from orchestrator.core.reasons import Cause
from orchestrator.core.state import Phase
from orchestrator.daemon import deployment
from tests.unit.daemon_stage import Stage

GROUP = """
name = "g"
restart = { jitter = 0 }
groups.trio = { members = ["a", "b", "c"], strategy = "STRATEGY" }
[processes.a]
command = ["a"]
[processes.b]
command = ["b"]
[processes.c]
command = ["c"]
"""
DEPENDANT = """
name = "g"
restart = { jitter = 0 }
[processes.a]
command = ["a"]
[processes.b]
command = ["b"]
depends-on = ["a"]
on-dependency-restart = "RULE"
"""
ALL = ["g/a-0", "g/b-0", "g/c-0"]


class Family:
    """Plain commands by letter, all ready at first."""

    def __init__(self, stage: Stage, text: str) -> None:
        self.stage = stage
        stage.up(text)
        self.settle()
        assert set(self.phases().values()) == {"ready"}
        stage.forget()

    def unit(self, letter: str):
        return self.stage.unit(f"g/{letter}-0")

    def phases(self) -> dict[str, str]:
        return {name.removesuffix("-0")[-1]: phase for name, phase in self.stage.phases().items()}

    def settle(self) -> None:
        """What is to be killed goes, what is to be born is, until nothing is left to do."""
        for _ in range(8):
            for unit in list(self.stage.supervisor.units.values()):
                if unit.state.phase is Phase.STOPPING:
                    self.stage.empty(unit, 9)
                elif unit.state.phase is Phase.STARTING:
                    self.stage.born(unit)

    def crash(self, letter: str) -> None:
        self.stage.post(self.unit(letter), e.MainExited, 9)

    def stop(self, letters: str) -> None:
        """With one verb."""

        def ask() -> None:
            for letter in letters:
                self.stage.supervisor.request(self.unit(letter), e.StopRequested)

        self.stage.call(ask)

    def start(self, letter: str) -> None:
        self.stage.call(self.stage.supervisor.request, self.unit(letter), e.StartRequested)

    def restart(self, letter: str) -> None:
        self.stage.call(self.stage.supervisor.request, self.unit(letter), e.RestartRequested)

    def happen(self, rng: random.Random) -> None:
        """One thing that could happen to one of them now."""
        unit = self.unit(rng.choice("abc"))
        letter, phase = unit.id.role, unit.state.phase
        facts = {
            Phase.STARTING: lambda: self.stage.born(unit),
            Phase.READY: lambda: self.crash(letter),
            Phase.STOPPING: lambda: self.stage.empty(unit, 9),
        }
        verb = rng.choice([self.stop, self.start, self.restart, self.crash, None, None, None, None])
        if verb is None:
            facts.get(phase, lambda: self.stage.jump(rng.choice([0.5, 5.0, 50.0])))()
        elif verb != self.crash or phase in {Phase.STARTING, Phase.READY}:
            verb(letter)

    def lives(self) -> str:
        """The incarnations of a, b, c, in this order."""
        return "".join(str(self.unit(x).state.incarnation) for x in sorted(self.phases()))


@pytest.fixture
def family(stage):
    return lambda text, word: Family(stage, text.replace("STRATEGY", word).replace("RULE", word))


@pytest.mark.parametrize(
    ("strategy", "victim", "killed", "lives"),
    [
        ("one-for-one", "b", "b", "121"),
        ("one-for-all", "b", "abc", "222"),
        ("rest-for-one", "a", "abc", "222"),
        ("rest-for-one", "b", "bc", "122"),
        ("rest-for-one", "c", "c", "112"),
    ],
)
def test_statement_42_a_death_takes_along_whom_the_strategy_names(
    family, strategy, victim, killed, lives
):
    here = family(GROUP, strategy)
    here.crash(victim)
    assert sorted(here.stage.ordered(a.Kill)) == [f"g/{letter}-0" for letter in killed]
    here.settle()
    here.stage.jump(2.0)
    here.settle()
    assert here.lives() == lives
    assert set(here.phases().values()) == {"ready"}


def test_only_the_one_that_failed_is_charged_and_the_others_wait_for_it(family):
    here = family(GROUP, "one-for-all")
    here.crash("b")
    here.settle()
    assert here.phases() == dict.fromkeys("abc", "waiting")
    assert [here.unit(x).state.counters.row for x in "abc"] == [0, 1, 0]
    for letter in "ac":
        reason = here.unit(letter).state.reason
        assert reason.cause is Cause.WAITING_DEPENDENCY
        assert "waits for g/b-0 of its group: restarts after 1.0 s" in reason.sentence
    assert here.unit("a").state.last_failure.cause is Cause.PEER
    assert "goes down with g/b-0, of its group trio" in str(here.unit("a").state.last_failure)
    assert here.stage.ordered() == []
    here.stage.jump(1.2)
    assert sorted(here.stage.ordered()) == ALL, "the backoff of one was that of all"


@pytest.mark.parametrize("strategy", ["one-for-all", "rest-for-one"])
def test_nobody_starts_before_the_last_of_the_group_is_gone(family, strategy):
    here = family(GROUP, strategy)
    here.crash("a")
    for letter in "ab":
        here.stage.empty(here.unit(letter), 9)
    here.stage.jump(5.0)
    assert here.phases() == {"a": "waiting", "b": "waiting", "c": "stopping"}
    here.stage.empty(here.unit("c"), 9)
    assert here.phases()["a"] == "starting"
    here.settle()
    assert here.lives() == "222"


def test_a_member_that_is_restarted_by_hand_is_waited_for_by_one_that_fails_meanwhile(family):
    here = family(GROUP, "one-for-all")
    here.restart("c")
    assert here.phases()["c"] == "stopping"
    here.crash("a")
    for letter in "ab":
        here.stage.empty(here.unit(letter), 9)
    here.stage.jump(5.0)
    assert here.phases() == {"a": "waiting", "b": "waiting", "c": "stopping"}
    here.settle()
    assert here.lives() == "222"


def test_failures_in_the_same_fall_are_not_counted(family):
    here = family(GROUP, "one-for-all")
    here.crash("b")
    here.crash("c")
    here.settle()
    assert [here.unit(x).state.counters.row for x in "abc"] == [0, 1, 0]


def test_a_group_waits_for_a_member_that_failed_for_good_until_it_is_started_or_stopped(family):
    here = family(GROUP.replace("jitter = 0", 'policy = "never"'), "one-for-all")
    here.crash("b")
    here.settle()
    here.stage.jump(100.0)
    assert here.phases() == {"a": "waiting", "b": "failed", "c": "waiting"}
    here.start("b")
    here.settle()
    assert set(here.phases().values()) == {"ready"}
    here.crash("a")
    here.settle()
    here.stop("a")
    here.settle()
    assert here.phases() == {"a": "stopped", "b": "ready", "c": "ready"}


def test_starts_follow_the_list_and_stops_go_backwards(stage):
    found = stage.up(GROUP.replace("STRATEGY", "rest-for-one").replace('"a", "b"', '"b", "a"'))
    order = ["g/b-0", "g/a-0", "g/c-0"]
    for number, name in enumerate(order, 1):
        assert stage.ordered() == order[:number]
        stage.born(stage.unit(name))
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert stage.ordered(a.Stop) == ["g/c-0"]
    stage.empty(stage.unit("g/c-0"))
    assert stage.ordered(a.Stop) == ["g/c-0", "g/a-0"]


def test_what_is_stopped_or_restarted_by_hand_takes_nobody_along(family):
    here = family(GROUP, "one-for-all")
    here.stop("a")
    here.settle()
    here.start("a")
    here.settle()
    here.restart("b")
    here.settle()
    assert here.lives() == "221"
    assert set(here.phases().values()) == {"ready"}


def test_statement_43_a_stop_in_the_fall_or_the_backoff_of_a_group_spawns_nothing(family):
    here = family(GROUP, "one-for-all")
    here.crash("b")
    here.stop("a")
    here.settle()
    here.stage.jump(0.5)
    here.stop("bc")
    here.stage.jump(100.0)
    here.settle()
    assert set(here.phases().values()) == {"stopped"}
    assert here.stage.ordered() == []


def test_an_end_that_was_the_purpose_takes_nobody_along(family):
    here = family(GROUP.replace("jitter = 0", 'policy = "on-failure"'), "one-for-all")
    here.stage.post(here.unit("b"), e.MainExited, 0)
    here.settle()
    assert here.phases() == {"a": "ready", "b": "completed", "c": "ready"}


def test_a_birth_that_fails_within_one_step_takes_the_others_along(family):
    here = family(GROUP, "one-for-all")
    here.restart("a")
    here.stage.empty(here.unit("a"))
    assert here.phases()["a"] == "starting"
    here.stage.post(here.unit("a"), e.SpawnFailed, "", "fork: Resource temporarily unavailable")
    assert here.phases() == {"a": "waiting", "b": "stopping", "c": "stopping"}


@pytest.mark.parametrize(("rule", "lives"), [("ignore", "21"), ("restart", "22")])
def test_a_dependant_restarts_with_what_it_depends_on_if_so_asked(family, rule, lives):
    here = family(DEPENDANT, rule)
    here.crash("a")
    assert here.phases() == {"a": "stopping", "b": "stopping" if rule == "restart" else "ready"}
    here.settle()
    here.stage.jump(2.0)
    here.settle()
    assert here.lives() == lives
    assert here.unit("b").state.counters.row == 0
    if rule == "restart":
        assert "restarts because g/a-0" in str(here.unit("b").state.last_failure)


@pytest.mark.parametrize(("rule", "lives"), [("ignore", "21"), ("restart", "22")])
def test_a_new_life_by_hand_means_the_same_to_a_dependant(family, rule, lives):
    here = family(DEPENDANT, rule)
    here.stop("a")
    here.settle()
    assert here.phases() == {"a": "stopped", "b": "ready"}
    here.start("a")
    here.settle()
    assert here.lives() == lives
    assert set(here.phases().values()) == {"ready"}


def test_a_daemon_that_died_in_a_fall_is_not_the_end_of_it(family):
    """The state of the one that failed was written, that of the others wasn't yet."""
    here = family(GROUP, "one-for-all")
    bonds, here.stage.supervisor._bonds = here.stage.supervisor._bonds, {}
    here.crash("b")
    assert here.phases() == {"a": "ready", "b": "stopping", "c": "ready"}
    here.stage.supervisor._bonds = bonds
    here.stage.call(here.stage.supervisor.catch_up)
    assert set(here.phases().values()) == {"stopping"}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nobody_lives_beside_a_broken_peer_and_all_come_back(stage, seed):
    rng = random.Random(seed)
    strategy = rng.choice(["one-for-all", "rest-for-one"])
    text = GROUP.replace("STRATEGY", strategy).replace("jitter = 0", "jitter = 0, attempts = 2")
    if rng.random() < 0.5:
        text += 'depends-on = ["a"]\n'
    if rng.random() < 0.5 and "depends-on" in text:
        text += 'on-dependency-restart = "restart"\n'
    here = Family(stage, text)
    for _ in range(120):
        here.happen(rng)
        supervisor = stage.supervisor
        assert groups.overdue_losses(supervisor._bonds["g"], supervisor._states("g")) == []
    for letter in "abc":
        here.start(letter)
    for _ in range(4):
        here.settle()
        stage.jump(100.0)
    assert set(here.phases().values()) == {"ready"}, (seed, here.phases())


CONDITIONS = """
name = "g"
restart = { jitter = 0, policy = "on-failure" }
[processes.a]
command = ["a"]
ready = { notify = true }
[processes.b]
command = ["b"]
depends-on = { a = "CONDITION" }
"""


@pytest.mark.parametrize("condition", ["started", "ready", "completed"])
def test_a_dependant_waits_for_the_condition_that_the_file_gives(stage, condition):
    stage.up(CONDITIONS.replace("CONDITION", condition))
    a, reached = stage.unit("g/a-0"), []
    told = f"waits for g/a-0 to be {condition}; it is being born"
    assert stage.unit("g/b-0").state.reason.sentence == told
    for step, happens in (
        ("started", stage.born),
        ("ready", lambda unit: stage.post(unit, e.BecameReady)),
        ("completed", stage.empty),
    ):
        happens(a)
        reached += [step] if stage.phase("g/b-0") == "starting" else []
    assert reached[0] == condition


def test_the_condition_is_looked_at_anew_at_every_start(stage):
    stage.up(CONDITIONS.replace("CONDITION", "started"))
    a, b = stage.unit("g/a-0"), stage.unit("g/b-0")
    for unit in (a, b):
        stage.born(unit)
    stage.call(stage.supervisor.request, a, e.StopRequested)
    stage.empty(a)
    stage.empty(b, 9)
    stage.jump(5.0)
    assert b.state.reason.sentence == "waits for g/a-0 to be started; it is stopped"
    stage.call(stage.supervisor.request, a, e.StartRequested)
    stage.born(a)
    assert stage.phase("g/b-0") == "starting"


def test_another_condition_is_a_difference_that_restarts_nothing(stage):
    started, ready = (
        stage.deployment(CONDITIONS.replace("CONDITION", word)) for word in ("started", "ready")
    )
    assert started.plan.workers[1].after == ("a (started)",)
    old, new = (
        {unit.id: deployment.config(unit.spec) for unit in deployment.make_units(each, str)}
        for each in (started, ready)
    )
    [change] = [each for each in difference(old, new) if each.kind != "unchanged"]
    assert change.kind == "live"
    assert [str(each) for each in change.deltas] == ["depends-on: a (started) -> a (ready)"]


def rules_of(stage, text: str) -> dict[str, dict[str, str]]:
    """What a changed file is compared by, for each replica."""
    found = stage.deployment(text)
    units = deployment.make_units(found, lambda life: f"/{life}")
    return {unit.id.role: deployment.config(unit.spec).rules for unit in units}


def test_a_changed_group_is_a_difference_and_a_changed_number_of_replicas_is_none(stage):
    seen = [
        rules_of(stage, GROUP.replace("STRATEGY", strategy))
        for strategy in ("one-for-one", "one-for-all", "rest-for-one")
    ]
    assert seen[0]["a"] != seen[1]["a"]
    assert seen[1]["b"] != seen[2]["b"]
    assert seen[2]["b"]["waits-for"] == "a (started), c (gone)"
    assert seen[2]["c"]["goes-down-with"] == "a (trio), b (trio)"
    ignore, restart = (
        rules_of(stage, DEPENDANT.replace("RULE", rule)) for rule in ("ignore", "restart")
    )
    assert restart["b"]["goes-down-with"] == "a (dependency)"
    assert (ignore["b"]["goes-down-with"], ignore["a"]) == ("", restart["a"])
    roles = 'name = "g"\nmodel = "m"\n[roles.a]\nreplicas = NUMBER\n[roles.b]\n'
    roles += 'groups.g = { members = ["a", "b"], strategy = "one-for-all" }\n'
    text = roles.replace("groups.g", "[groups]\ng")
    one, two = (rules_of(stage, text.replace("NUMBER", number)) for number in "12")
    assert one["b"] == two["b"]
