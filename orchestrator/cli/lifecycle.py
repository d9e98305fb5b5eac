"""Verbs that change something and then watch it happen: `up`, `down`, `restart` and the like."""

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import Any

import msgspec
import typer

from orchestrator.cli.dirs import Dirs, dirs, how_called
from orchestrator.cli.files import engine_choice, read, variables_of
from orchestrator.cli.follow import Follower, has_failed, moving, sigterm_interrupts
from orchestrator.cli.logs import last_lines
from orchestrator.cli.main import GIVEN_UP, INTERRUPTED, INVALID, NO_DAEMON, fail
from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.client import LOOK_INTO_S, Client, Standby, call_or_start
from orchestrator.views.banner import trouble, up_banner
from orchestrator.views.changes_text import changes_text
from orchestrator.views.event_line import event_brief
from orchestrator.views.ink import Span
from orchestrator.wire.changes import Changes
from orchestrator.wire.messages import Reply
from orchestrator.wire.snapshot import TopologyStatus

TAIL_LINES = 10
CI_GPU_TIMEOUT_S = 120.0
"""How long a build waits for a GPU, where the file doesn't say it: nobody is there to free one."""

END_S = 10.0
"""How long a daemon may take to end after its last topology; it has nothing left to do."""


def checked(reply: Reply) -> Reply:
    """Exit with the daemon's words if it refused."""
    if reply.code:
        fail(reply.text, reply.code)
    return reply


def tell(reply: Reply) -> None:
    """Say what changes of what is up already."""
    found = msgspec.convert(reply.data, Changes)
    if found.adopted and any(each.kind != "unchanged" for each in found.changes):
        sys.stdout.write(changes_text(found))
        sys.stdout.flush()


def up(
    file: Path,
    engine: str,
    *,
    detach: bool,
    banner: bool = True,
    strict: bool = False,
    ci: bool = False,
    standby: Standby | None = None,
) -> int:
    """Serve a topology until it answers (`detach`) or until Ctrl-C.

    `banner`: say at the end how to use it. `strict`: end with 3, in order, when a replica is given
    up. `ci`: no colours, nothing redrawn, and no GPU is waited for in vain. `standby`: who will be
    the daemon if none runs.
    """
    if strict and detach:
        fail("-d leaves before anything can fail: it doesn't go with --exit-on-failed", INVALID)
    topology = read(file, engine=engine_choice(engine))
    here = dirs(create=True)
    arguments = {**up_arguments(file, engine, ci=ci), "watch_pid": 0 if detach else os.getpid()}
    arguments |= {"timeout_s": LOOK_INTO_S, "on_slow": importing}
    with Client(here.run) as client, sigterm_interrupts():
        reply = checked(
            call_or_start(client, here.run, here.state, "up", standby=standby, **arguments)
        )
        tell(reply)
        try:
            follower = Follower(client, topology.name, plain=ci)
            if strict:
                return _stay_strictly(follower, topology.name, here, banner=banner)
            return _stay(follower, topology.name, detach=detach, banner=banner)
        except KeyboardInterrupt:
            if detach:
                print(f"\nstill starting; `dynorch down {topology.name}` stops it")
                return INTERRUPTED
            return _end(client, here, topology.name)
        except NoDaemonError:
            if not here.leftovers([topology.name]):  # the daemon went with its last topology
                fail(f"{topology.name} was taken down")
            fail(here.absence(), NO_DAEMON)


def importing() -> None:
    """Say what an answer is waited for."""
    print("asking the engine about its flags; importing it takes a while", file=sys.stderr)


def up_arguments(file: Path, engine: str, *, ci: bool = False) -> dict[str, Any]:
    """What the daemon is told about a file."""
    said = {"gpu_timeout_s": CI_GPU_TIMEOUT_S} if ci else {}
    return said | {
        "file": str(file.absolute()),
        "variables": variables_of(file.read_text(encoding="utf-8")),
        "engine": engine,
    }


def _stay(follower: Follower, name: str, *, detach: bool, banner: bool) -> int:
    settled = follower.until_settled()
    if settled is None:
        fail(f"{name} was taken down while it started")
    if settled.rollout == "halted":
        follower.progress.say([[Span(f"{name}: not rolled out: {settled.rollout_note}", "bad")]])
        return 1 if detach else _watch(follower, name)
    if settled.health == "ready":
        if banner:
            lines = up_banner(follower.last, name, foreground=not detach, command=how_called())
            follower.progress.say(lines)
        return 0 if detach else _watch(follower, name)
    *story, reason = trouble(settled, _last_lines(settled))
    follower.progress.say(story)
    if detach:
        print(f"it stays as it is: `dynorch status` looks again, `dynorch down {name}` ends it")
    elif settled.health == "failed":
        _quiet_down(follower, name)
    follower.progress.say([reason])
    return 1 if detach or settled.health == "failed" else _watch(follower, name)


def _stay_strictly(follower: Follower, name: str, here: Dirs, *, banner: bool) -> int:
    """Stay in the foreground until one replica is given up; then take the rest down."""
    topology = follower.until_settled(strict=True)
    if topology is not None and topology.health == "ready" and banner:
        follower.progress.say(up_banner(follower.last, name, foreground=True, command=how_called()))
    while topology is not None and not has_failed(topology):
        event = follower.event()
        if event is not None and event.reason and event.what == "phase-changed":
            follower.progress.note(event_brief(event))
        topology = follower.present(follower.last)
    if topology is None:
        print(f"{name} was taken down")
        return 0
    *story, reason = trouble(topology, _last_lines(topology))
    follower.progress.say(story)
    _quiet_down(follower, name)
    follower.progress.say([[Span(f"    in short: {here.failures}", "dim")], reason])
    return GIVEN_UP


def _watch(follower: Follower, name: str) -> int:
    """Stay in the foreground and say what happens."""
    while True:
        event = follower.event()
        if event is not None and event.reason and event.what == "phase-changed":
            follower.progress.note(event_brief(event))
        topology = follower.present(follower.last)
        if topology is None:
            print(f"{name} was taken down")
            return 0
        if topology.health == "failed" and not moving(topology):
            *story, reason = trouble(topology, _last_lines(topology))
            follower.progress.say(story)
            _quiet_down(follower, name)
            follower.progress.say([reason])
            return 1


def _quiet_down(follower: Follower, name: str) -> None:
    follower.progress.say([[Span("stopping the rest of it", "dim")]])
    with contextlib.suppress(NoDaemonError):  # it went with its last topology
        follower.client.call("down", topology=name, now=False)
        _see_off(follower, name)


def _last_lines(topology: TopologyStatus) -> list[str]:
    """The end of the log of the first replica that has failed."""
    for role in topology.supervised:
        for replica in role.replicas:
            if replica.phase == "failed" and replica.workers and replica.workers[0].log:
                return last_lines(Path(replica.workers[0].log), TAIL_LINES)
    return []


def _end(client: Client, here: Dirs, name: str | None) -> int:
    """Go down in order after a first Ctrl-C, at once after a second; verify; exit 130."""
    print(f"\nstopping {name or 'everything'} (Ctrl-C again to kill)")
    now = False
    while True:
        try:
            down(name, now=now, client=client, here=here)
        except KeyboardInterrupt:
            now = True
            print("\nkilling")
        except typer.Exit:
            if here.leftovers([name] if name else None):
                raise
            return INTERRUPTED  # the first Ctrl-C had done it when the second came
        else:
            return INTERRUPTED


def down(
    name: str | None, *, now: bool, client: Client | None = None, here: Dirs | None = None
) -> int:
    """Take a topology, or all, down; return when nothing of it is left."""
    here = here or dirs()
    if name is not None and "/" in name:
        fail(f"`down` ends a whole topology; `dynorch stop {name}` stops a part", INVALID)
    if client is None:
        with Client(here.run) as fresh:
            return down(name, now=now, client=fresh, here=here)
    try:
        reply = client.call("down", topology=name, now=now)
    except NoDaemonError:
        if not here.leftovers():
            fail("no daemon runs, and nothing is left to stop", NO_DAEMON)
        print("no daemon runs; starting one to stop what it left")
        reply = call_or_start(client, here.run, here.state, "down", topology=name, now=now)
    names: list[str] = checked(reply).data["topologies"]
    with contextlib.suppress(NoDaemonError):  # it went with its last topology
        for each in names:
            _see_off(Follower(client, each), each)
    left = here.leftovers(names)
    if left:
        fail(f"still there: {', '.join(left)}")
    print(f"{', '.join(names) or 'nothing was up'}: down, nothing left")
    return 0


def _see_off(follower: Follower, name: str) -> None:
    """Follow a topology until it is gone, and its daemon too if that ends with it."""
    daemon = follower.last.daemon
    try:
        pidfd = os.pidfd_open(daemon.pid or 0)
    except OSError:
        return  # it is gone already
    try:
        follower.until_gone()
        others = [topology for topology in follower.last.topologies if topology.name != name]
        if daemon.on_demand and not others:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(round(END_S * 1000))
    finally:
        os.close(pidfd)


def is_bad(phase: str, verb: str) -> bool:
    """Say whether a verb that is over has not done what it should, or another has undone it."""
    return phase != "stopped" if verb in {"stop", "drain"} else phase in {"stopped", "failed"}


def order(verb: str, target: str, *, wait: bool = True, **more: Any) -> int:
    """Ask for a restart, start, stop or drain, and wait until it has happened."""
    here = dirs()
    with Client(here.run) as client:
        try:
            before = Follower(client, target.partition("/")[0])
            before.progress.take(before.last)
            reply = checked(client.call(verb, target=target, **more))
            replicas = frozenset(reply.data["replicas"])
            if not wait:
                print(f"{verb}: asked {', '.join(sorted(replicas))}")
                return 0
            topology = before.until_done(replicas, verb)
        except NoDaemonError:
            fail(here.absence(), NO_DAEMON)
        if topology is None:
            fail(f"{target} is gone")
        if topology.rollout == "halted":
            fail(f"{topology.name}: {topology.rollout_note}")
        bad = [
            f"{topology.name}/{role.name}-{replica.index} {replica.phase}: {replica.reason}"
            for role in topology.supervised
            for replica in role.replicas
            if f"{topology.name}/{role.name}-{replica.index}" in replicas
            and is_bad(replica.phase, verb)
        ]
        if bad:
            fail("\n".join(bad))
        print(f"{verb}: {', '.join(sorted(replicas))}")
        return 0
