"""The daemon without processes, sockets and time: who writes down everything that it does.

The loop is asyncio's own with a clock that only moves when a test says so. Shims and zygotes are
left out: a test posts what they would say. `log` has all that left the daemon, in order.
"""

import asyncio
import itertools

from orchestrator.core import actions
from orchestrator.core import events as e
from orchestrator.core.inventory import Inventory
from orchestrator.core.state import Phase
from orchestrator.daemon.deployment import Deployment, Kept
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.hearing import Hearing
from orchestrator.daemon.notices import Notices
from orchestrator.daemon.prober import Prober
from orchestrator.daemon.reading import read
from orchestrator.daemon.stalls import Stalls
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.wire import messages
from orchestrator.wire.ids import ReplicaId

AGG = """
name = "agg"
model = "m"
[frontend]
port = 8000
[roles.worker]
kind = "aggregated"
replicas = 2
"""
CHAIN = """
name = "chain"
[processes.a]
command = ["a"]
[processes.b]
command = ["b"]
depends-on = ["a"]
[processes.c]
command = ["c"]
depends-on = ["b"]
"""


class Loop(asyncio.SelectorEventLoop):
    """Time stands still until `Stage.after` or `Stage.jump`."""

    now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class Stage:
    inventory = Inventory()

    def __init__(self, folder) -> None:
        self.loop = Loop()
        self.raised: list[dict] = []
        self.loop.set_exception_handler(lambda _, context: self.raised.append(context))
        self.log: list[tuple] = []
        self.tables: list = []
        self.sent: list[tuple[str, object]] = []
        self.gone = 0
        self.run_dir, self.state_dir = RunDir(folder / "run"), StateDir(folder / "state")
        for directory in (self.run_dir, self.state_dir):
            directory.create()
        self.supervisor = Supervisor(self, self.save, self, self)
        self.deployments = Deployments(
            self.run_dir, self.state_dir, self.supervisor, self, self.count_gone
        )
        self.stalls = Stalls(self.supervisor, self)
        self.hearing = Hearing(self.supervisor, self.deployments.greeted, self.deployments.applied)
        self.prober = Prober(self.supervisor, self)
        self.notices = Notices(self.supervisor)
        self.questions: list[tuple[str, asyncio.Future[str]]] = []
        self.pids = itertools.count(100)

    # -- what the daemon is given ---------------------------------------------------------------

    def save(self, replica, state) -> None:
        self.log.append(("save", str(replica), state.phase.value))

    def perform(self, unit, action) -> None:
        self.log.append(("do", str(unit.id), action))

    generation = 0

    def event(self, subject, what, **details) -> None:
        self.log.append(("event", str(subject), what, details))

    def routes(self, table) -> None:
        self.log.append(("routes", table.topology))
        self.tables.append(table)

    def changed(self, unit, before) -> None:
        self.deployments.changed(unit, before)
        self.prober.changed(unit)
        self.stalls.changed(unit)
        self.notices.changed(unit)

    def respecified(self, unit) -> None:
        self.log.append(("respecified", str(unit.id), unit.spec.log_max_bytes))

    def settled(self, unit) -> None:
        self.deployments.settled(unit)

    def send(self, life, message) -> None:
        self.sent.append((str(life), message))

    async def ask(self, unit, life, probe) -> str:
        """Stand in for running a check command: the test answers, see `answer`."""
        answer = self.loop.create_future()
        self.questions.append((str(life), answer))
        return await answer

    def answer(self, why: str = "") -> str:
        """Answer the one open question; who was asked."""
        ((life, future),) = self.questions
        self.questions.clear()
        future.set_result(why)
        self.turn()
        return life

    def count_gone(self) -> None:
        self.gone += 1

    # -- driving --------------------------------------------------------------------------------

    def call(self, function, *args, **more):
        """Call inside the running loop, then let follow what follows."""

        async def inside():
            return function(*args, **more)

        result = self.loop.run_until_complete(inside())
        self.turn()
        return result

    def turn(self) -> None:
        for _ in range(20):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        assert not self.raised, self.raised

    def after(self, seconds: float) -> None:
        """Let time pass, a tenth of a second at a time."""
        for _ in range(round(seconds * 10)):
            self.loop.now_s += 0.1
            self.turn()

    def jump(self, seconds: float) -> None:
        """Let it pass at once: nothing is expected to happen in between."""
        self.loop.now_s += seconds
        self.turn()

    def deployment(self, text: str, **kept) -> Deployment:
        kept = Kept(
            file="/t.toml", text=text, variables={}, engine="sim", inventory=self.inventory, **kept
        )
        return Deployment(kept, *read(kept))

    def up(self, text: str, **kept) -> Deployment:
        found = self.deployment(text, **kept)
        self.call(self.deployments.deploy, found)
        self.call(self.deployments.start_all, found.name)
        return found

    def serve(self, text: str) -> Deployment:
        """All the way up: each is born, greets, becomes ready, and obeys the last table."""
        found = self.up(text)
        for _ in range(4):
            for unit in self.deployments.units(found.name):
                if unit.state.phase is Phase.STARTING:
                    self.make_ready(unit)
        for unit in self.deployments.units(found.name):
            if unit.spec.kind == "frontend":
                self.beat(unit, routes_version=found.routes_version)
        return found

    def make_ready(self, unit) -> None:
        self.born(unit)
        if unit.spec.kind != "process":
            self.hello(unit)
            self.say(unit, messages.Ready(self.life(unit), ["m"]))

    def unit(self, name: str):
        return self.supervisor.units[ReplicaId.parse(name)]

    def phase(self, name: str) -> str:
        return self.unit(name).state.phase.value

    def phases(self) -> dict[str, str]:
        return {str(name): unit.state.phase.value for name, unit in self.supervisor.units.items()}

    def life(self, unit, incarnation: int | None = None, member: int = 0) -> str:
        return f"{unit.id}.{member}#{incarnation or unit.state.incarnation}"

    def timers(self) -> int:
        """How many things wait for their time."""
        return sum(not handle.cancelled() for handle in self.loop._scheduled)

    # -- what the world says --------------------------------------------------------------------

    def post(self, unit, kind, *args, member: int = 0) -> None:
        self.call(self.supervisor.post, unit.id, kind(member, unit.state.incarnation, *args))

    def born(self, unit, member: int = 0) -> None:
        self.post(unit, e.Spawned, next(self.pids), member=member)

    def empty(self, unit, status: int | None = 0) -> None:
        self.post(unit, e.TreeEmptied, e.ExitFacts(status=status, asked=status == 0))

    def say(self, unit, message, incarnation: int | None = None, member: int = 0) -> None:
        life = unit.id.life(member, incarnation or unit.state.incarnation)
        self.call(self.hearing.take, self, life, message)

    def hello(
        self, unit, *, ready: bool = False, incarnation: int | None = None, member: int = 0
    ) -> None:
        life = self.life(unit, incarnation, member)
        self.say(
            unit,
            messages.Hello(
                life=life, pid=7, protocol=1, version="1", engine="sim",
                endpoint=f"ipc://{life}", ready=ready, models=["m"],
            ),
            incarnation,
            member,
        )  # fmt: skip

    def beat(
        self, unit, *, ready: bool = True, incarnation: int | None = None, member: int = 0, **facts
    ) -> None:
        facts = {"inflight": 0, "requests": 0, "tokens": 0, "loop_age_s": 0.0, "seq": 1} | facts
        message = messages.Beat(life=self.life(unit, incarnation, member), ready=ready, **facts)
        self.say(unit, message, incarnation, member)

    # -- reading the log ------------------------------------------------------------------------

    def forget(self) -> None:
        self.log.clear()
        self.sent.clear()
        self.tables.clear()

    def ordered(self, kind: type = actions.Spawn) -> list[str]:
        return [one[1] for one in self.log if one[0] == "do" and isinstance(one[2], kind)]

    def told(self) -> list[tuple[str, str]]:
        """Subject and kind of each event."""
        return [one[1:3] for one in self.log if one[0] == "event"]

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
