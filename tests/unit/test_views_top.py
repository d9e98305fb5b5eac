"""The TUI, driven by Textual's own pilot against a made-up source."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from textual.pilot import Pilot

from orchestrator.views.rows import rows
from orchestrator.views.source import Pace
from orchestrator.views.tail import LogTail
from orchestrator.views.top import TopApp
from orchestrator.views.top_screens import Confirm, Help
from orchestrator.views.top_tree import matching, worth_a_line
from orchestrator.wire.events import Event
from orchestrator.wire.messages import Reply
from orchestrator.wire.snapshot import Snapshot
from tests.unit.made_up import DAEMON, NO_DAEMON, SNAPSHOT, agg, ready, replica, worker

STALLED_S = 1_000.0


class Fake:
    """A source whose answers a test sets."""

    def __init__(self, snapshot: Snapshot = SNAPSHOT) -> None:
        self.now = snapshot
        self.looks = 0
        self.verbs: list[tuple[str, dict[str, Any]]] = []
        self.happens: asyncio.Queue[Event] = asyncio.Queue()
        self.reply = Reply(code=0)

    async def snapshot(self) -> Snapshot:
        self.looks += 1
        return self.now

    async def events(self):
        while True:
            yield await self.happens.get()

    async def verb(self, name: str, args: dict[str, Any]) -> Reply:
        self.verbs.append((name, args))
        return self.reply

    def log_tail(self, path: str, n: int) -> LogTail:
        return LogTail(path, n)


def pilot(
    act: Callable[[TopApp, Fake, Pilot], Any],
    snapshot: Snapshot = SNAPSHOT,
    size: tuple[int, int] = (120, 34),
) -> None:
    """Run the app with a made-up source; after the first look it looks only when nudged."""

    async def run() -> None:
        source = Fake(snapshot)
        app = TopApp(source, Pace(gap_s=0.0, tick_s=STALLED_S))
        async with app.run_test(size=size, notifications=True) as driver:
            await until(driver, lambda: source.looks == 1)
            await act(app, source, driver)

    asyncio.run(run())


async def until(driver: Pilot, condition: Callable[[], bool]) -> None:
    """Let the app work until something is so."""
    for _ in range(200):
        await driver.pause()
        if condition():
            return
    raise AssertionError("it never came to be")


def screen(app: TopApp) -> str:
    """What a person would read now."""
    lines = [
        "".join(segment.text for segment in strip)
        for strip in app.screen._compositor.render_strips()
    ]
    return "\n".join(line.rstrip() for line in lines)


def test_the_tree_shows_everything():
    async def act(app, source, driver):
        await until(driver, lambda: "cache-0" in screen(app))
        text = screen(app)
        assert "dynorch 0.1.0   daemon 4711, up 2 h 05 min   /run/dynorch" in text
        for words in (
            "▼ disagg        ◉ degraded",
            "├ frontend-0    ● ready     2 h 05 min  #1              4800",
            "├ ▼ decode      1/3 ready",
            "│ │ └ .1",
            "│ ├ decode-1    ○ waiting          2 s  #4           3",
            "└ cache-0       ✗ failed         5 min  #5           5",
            "loading weights, 43 %",
        ):
            assert words in text, text

    pilot(act)


def test_the_chosen_row_is_explained_and_its_log_followed(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"step {i}\n" for i in range(5_000)) + "\x1b[31mred\x1b[0m\n")
    one = msgspec.structs.replace(worker("agg/worker-0.0#1", pid=7), log=str(path))
    broken = replica("failed", reason="no luck", advice="try again", workers=[one])

    async def act(app, source, driver):
        await driver.press("down")
        await until(driver, lambda: "to do: try again" in screen(app))
        assert f"{str(path)[-30:]} " in screen(app)
        await until(driver, lambda: "step 4999" in screen(app))
        assert len(app.log_pane.lines) <= 1_000
        assert "│ red" in screen(app)
        with path.open("a") as file:
            file.write("and more\n")
        app.log_pane.catch_up()
        await until(driver, lambda: "and more" in screen(app))
        app.log_pane.scroll_home(animate=False)
        await driver.pause()
        with path.open("a") as file:
            file.write("unseen\n")
        app.log_pane.catch_up()
        await driver.pause()
        assert app.log_pane.scroll_y == 0, "whoever scrolled up to read isn't thrown back"

    pilot(act, agg(broken, health="failed"))


def test_an_event_is_shown_and_makes_it_look_again():
    async def act(app, source, driver):
        source.now = agg(replica("ready"), health="ready")
        event = Event(seq=1, wall=0, subject="agg/worker-0", what="spawned", reason="on request")
        source.happens.put_nowait(event)
        await until(driver, lambda: source.looks == 2 and "worker-0" in screen(app))
        assert "agg/worker-0 spawned on request" in " ".join(screen(app).split())

    pilot(act, Snapshot(daemon=DAEMON))


def test_it_survives_the_daemon_and_goes_on_with_the_next():
    async def act(app, source, driver):
        app.show(NO_DAEMON)
        await until(driver, lambda: "daemon gone (pid 4711); 5 workers still run" in screen(app))
        assert "decode-1" in screen(app)
        heir = msgspec.structs.replace(DAEMON, pid=4712)
        app.show(msgspec.structs.replace(SNAPSHOT, daemon=heir))
        await until(driver, lambda: "daemon gone" not in screen(app))
        assert "daemon 4712" in screen(app)

    pilot(act)


def test_a_silent_daemon_is_reported(monkeypatch):
    async def never() -> Snapshot:
        raise TimeoutError

    async def act(app, source, driver):
        source.snapshot = never
        source.happens.put_nowait(Event(seq=1, wall=0, subject="daemon", what="verb"))
        await until(driver, lambda: "the daemon (pid 4711) doesn't answer" in screen(app))

    pilot(act)


def test_a_restart_is_asked_for_first():
    async def act(app, source, driver):
        await driver.press("down", "r")
        await until(driver, lambda: isinstance(app.screen, Confirm))
        assert "Restart disagg/frontend-0?" in screen(app)
        app.show(NO_DAEMON)  # news under an open dialogue
        await driver.press("n")
        assert source.verbs == []
        await driver.press("r", "y")
        await until(driver, lambda: source.verbs != [])
        assert source.verbs == [("restart", {"target": "disagg/frontend-0"})]

    pilot(act)


def test_down_takes_the_topology_and_a_refusal_is_shown():
    async def act(app, source, driver):
        source.reply = Reply(code=1, text="disagg is going down already")
        await driver.press("down", "down", "d", "y")
        await until(driver, lambda: "going down already" in screen(app))
        assert source.verbs == [("down", {"topology": "disagg"})]

    pilot(act)


def test_it_survives_a_resize():
    async def act(app, source, driver):
        await driver.press(*["down"] * 9)
        for size in ((40, 10), (79, 24), (100, 15), (200, 60)):
            await driver.resize_terminal(*size)
            await until(driver, lambda: "cache-0" in screen(app))
            app.show(SNAPSHOT)
        await driver.resize_terminal(120, 34)
        await until(driver, lambda: "IN FLIGHT" in screen(app) and "cache-0" in screen(app))
        assert max(map(len, screen(app).splitlines())) <= 120

    pilot(act)


def test_cursor_and_folds_survive_what_comes_and_goes():
    async def act(app, source, driver):
        tree = app.deployment
        await driver.press("down", "down")
        assert tree.cursor_node.data.id == "agg/worker-0"
        app.show(agg(*(ready(i, 5, worker(f"agg/worker-{i}.0#1", pid=i + 1)) for i in range(50))))
        await driver.pause()
        assert tree.cursor_node.data.id == "agg/worker-0"
        assert tree.last_line == 51
        await driver.press("up", "enter")
        assert tree.last_line == 1
        app.show(agg(ready(0, 5), ready(1, 5), ready(2, 5)))
        await driver.pause()
        assert tree.last_line == 1
        assert tree.cursor_node.data.id == "agg/worker"

    pilot(act, agg(ready(0, 5), ready(1, 5)))


def test_the_last_topology_may_go_and_another_come():
    async def act(app, source, driver):
        await driver.press("down")
        app.show(Snapshot(daemon=DAEMON))
        await until(driver, lambda: "disagg" not in screen(app))
        assert app.deployment.cursor_node is None
        assert "`dynorch up FILE` starts a deployment" in screen(app)
        await driver.press("r", "d")  # nothing is chosen, so nothing is asked
        assert not isinstance(app.screen, Confirm)
        app.show(SNAPSHOT)
        await until(driver, lambda: "cache-0" in screen(app))

    pilot(act)


def test_a_change_of_words_rebuilds_nothing():
    async def act(app, source, driver):
        nodes = list(app.deployment._by_key.values())
        app.show(agg(replica("ready", since_s=9), health="ready"))
        await until(driver, lambda: "● ready" in screen(app))
        assert list(app.deployment._by_key.values()) == nodes

    pilot(act, agg(replica("starting")))


def test_the_filter_keeps_what_is_above():
    async def act(app, source, driver):
        await driver.press("slash", *"memory")
        await until(driver, lambda: "prefill-0" not in screen(app))
        names = [node.data.name for node in app.deployment._by_key.values()]
        assert names == ["disagg", "decode", "decode-1"]
        await driver.press("escape")
        await until(driver, lambda: "prefill-0" in screen(app))

    pilot(act)
    everything = worth_a_line(rows(SNAPSHOT))
    assert matching(everything, "") == everything
    assert matching(everything, "nowhere to be found") == []


def test_help_and_quit():
    async def act(app, source, driver):
        await driver.press("question_mark")
        await until(driver, lambda: isinstance(app.screen, Help))
        assert "nothing that runs is touched" in screen(app)
        await driver.press("escape", "q")
        await until(driver, lambda: not app.is_running)

    pilot(act)
