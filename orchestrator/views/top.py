"""`dynorch top`: the deployment as it moves.

Above, the tree of what is supervised; below, the chosen row in full, its log, and what happens.
The app knows only its `Source`: it looks when something happened (at most four times a second) and
once a second for the counters. It outlives the daemon: when that is gone the banner says so, the
tree shows what still runs, and the display goes on by itself when a daemon is back.
"""

import asyncio
import time
from typing import Any, ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer, Input, Static

from orchestrator.views import words
from orchestrator.views.rates import Rates
from orchestrator.views.rows import rows
from orchestrator.views.source import Pace, Source
from orchestrator.views.status_table import gone
from orchestrator.views.top_panes import NOTHING, Detail, EventPane, LogPane
from orchestrator.views.top_screens import Confirm, Help
from orchestrator.views.top_tree import DeploymentTree, matching, worth_a_line
from orchestrator.wire.events import Event
from orchestrator.wire.snapshot import Snapshot

SILENT_S = 3.0
"""A daemon that takes longer to answer is reported as silent."""

LOG_PERIOD_S = 0.5
NARROW_COLUMNS = 100
SHORT_LINES = 24

KEYS = """\
up, down     choose a row; its reason, log and process are shown below
enter        fold or unfold
r            restart the chosen replica or role (asks first)
d            take the chosen topology down (asks first)
/            show only rows that hold a text; escape shows all again
tab          go to the log or the events, to scroll
q            quit; nothing that runs is touched"""

_CSS = """
* { scrollbar-background: $surface; scrollbar-color: $panel-lighten-2; }
#banner { height: 1; display: none; padding: 0 1; }
#banner { background: $error; color: $text; text-style: bold; }
#banner.-shown { display: block; }
#head, #titles { height: 1; padding: 0 1; }
#titles { background: $panel; }
#tree { height: 1fr; min-height: 3; padding: 0 1; overflow-x: hidden; scrollbar-gutter: stable;
  scrollbar-size-vertical: 1; }
#detail { height: 5; overflow-y: auto; padding: 0 1; background: $panel; }
#panes { height: 40%; layout: horizontal; }
#panes > RichLog {
  border: round $panel-lighten-2; border-title-color: $text-muted; padding: 0 0 0 1;
  overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable; scrollbar-size-vertical: 1;
}
#panes > RichLog:focus { border: round $accent; }
#log { width: 3fr; }
#events { width: 2fr; }
#filter { display: none; height: 1; border: none; padding: 0 1; }
#filter.-shown { display: block; }
Screen.-narrow #panes { layout: vertical; height: 45%; }
Screen.-narrow #log { width: 100%; height: 2fr; }
Screen.-narrow #events { width: 100%; height: 1fr; min-height: 4; }
Screen.-short #events { display: none; }
Screen.-short #detail { height: 3; }
"""


class TopApp(App[None]):
    """The application. `show` and `tell` are all that its loops do, so a test may call them."""

    CSS = _CSS
    TITLE = "dynorch"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "restart", "restart"),
        Binding("d", "down", "down"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("escape", "unfilter", show=False),
    ]

    def __init__(self, source: Source, pace: Pace | None = None) -> None:
        super().__init__()
        self._source = source
        self._pace = pace or Pace()
        self._rates = Rates()
        self._seen: Snapshot | None = None
        self._daemon_pid: int | None = None
        self._wanted = ""
        # Held here, not looked up: a query searches the screen on top, which may be a dialogue.
        self.banner = Static(id="banner", markup=False)
        self.head = Static("looking for a daemon", id="head", markup=False)
        self.titles = Static(id="titles", markup=False)
        self.deployment = DeploymentTree(tree_id="tree")
        self.detail = Detail(NOTHING, id="detail", markup=False)
        self.log_pane = LogPane(source, pane_id="log")
        self.event_pane = EventPane(pane_id="events")
        self.filter_box = Input(placeholder="show only rows that hold ...", id="filter")

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield self.banner
        yield self.head
        yield self.titles
        yield self.deployment
        yield self.detail
        with Container(id="panes"):
            yield self.log_pane
            yield self.event_pane
        yield self.filter_box
        yield Footer()

    def on_mount(self) -> None:
        """Start looking and listening."""
        self.deployment.focus()
        self.run_worker(self._look(), name="look")
        self.run_worker(self._listen(), name="listen")
        self.set_interval(LOG_PERIOD_S, self.log_pane.catch_up)

    async def _look(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    snapshot = await self._source.snapshot()
            except TimeoutError:
                self._warn(f"the daemon (pid {self._daemon_pid}) doesn't answer; this is old")
            else:
                self.show(snapshot)
            await self._pace.wait()

    async def _listen(self) -> None:
        async for event in self._source.events():
            self.tell(event)
            self._pace.nudge()

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot, or that there is no daemon behind it."""
        daemon = snapshot.daemon
        if daemon.pid is None:
            said = "no daemon"
            # A daemon that left with its last topology is no alarm.
            self._warn(gone(snapshot, self._daemon_pid) if snapshot.running() else "")
        else:
            said = f"daemon {daemon.pid}, up {words.age(daemon.uptime_s)}"
            self._daemon_pid = daemon.pid
            self._warn("")
        self.head.update(f"dynorch {daemon.version}   {said}   {daemon.run_dir}")
        self._seen = snapshot
        workers = [w for row in rows(snapshot) if row.level == "topology" for w in row.workers]
        self._rates.take(workers, time.monotonic())
        self._draw()

    def tell(self, event: Event) -> None:
        """Show an event, unless it is news for programs only: each routing table is answered."""
        if event.what != "answering":
            self.event_pane.tell(event)

    def _warn(self, text: str) -> None:
        self.banner.set_class(bool(text), "-shown")
        self.banner.update(text)

    def _draw(self) -> None:
        if self._seen is not None:
            chosen = matching(worth_a_line(rows(self._seen)), self._wanted)
            self.deployment.show(chosen, self._rates)

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout that fits."""
        self.screen_stack[0].set_class(event.size.width < NARROW_COLUMNS, "-narrow")
        self.screen_stack[0].set_class(event.size.height < SHORT_LINES, "-short")

    def on_deployment_tree_chosen(self, message: DeploymentTree.Chosen) -> None:
        """Show the row under the cursor in the panes."""
        self.detail.show(message.row)
        self.log_pane.follow(message.row.log if message.row else "")

    def on_deployment_tree_titles(self, message: DeploymentTree.Titles) -> None:
        """Put the columns' titles above the tree."""
        self.titles.update(message.heading)

    def action_restart(self) -> None:
        """Ask, then restart what is chosen."""
        chosen = self.deployment.row  # not the last message: fast fingers are ahead of it
        if chosen is not None:
            target = chosen.id
            self._ask(f"Restart {target}?", "restart", {"target": target})

    def action_down(self) -> None:
        """Ask, then take the chosen topology down."""
        chosen = self.deployment.row
        if chosen is not None:
            name = chosen.id.partition("/")[0]
            self._ask(f"Take {name} down? All its workers are stopped.", "down", {"topology": name})

    def _ask(self, question: str, verb: str, args: dict[str, Any]) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._do(verb, args), group="verbs")

        self.push_screen(Confirm(question), answered)

    async def _do(self, verb: str, args: dict[str, Any]) -> None:
        reply = await self._source.verb(verb, args)
        said = words.one_line(reply.text) or ("done" if reply.code == 0 else "failed")
        self.notify(
            f"{verb}: {said}", severity="error" if reply.code else "information", markup=False
        )
        self._pace.nudge()

    def action_help(self) -> None:
        """List the keys."""
        self.push_screen(Help(KEYS))

    def action_filter(self) -> None:
        """Ask for a text to look for."""
        self.filter_box.add_class("-shown")
        self.filter_box.focus()

    def action_unfilter(self) -> None:
        """Show everything again."""
        self.filter_box.value = ""
        self.filter_box.remove_class("-shown")
        self.deployment.focus()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Filter while the text is typed."""
        self._wanted = message.value
        self._draw()

    def on_input_submitted(self, _: Input.Submitted) -> None:
        """Leave the box; the filter stays."""
        self.deployment.focus()
