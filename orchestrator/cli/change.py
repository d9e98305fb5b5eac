"""Verbs about what is wanted of a topology that is up: what `up` would change, and `scale`."""

import json
import sys
from pathlib import Path

import msgspec

from orchestrator.cli.dirs import dirs
from orchestrator.cli.files import engine_choice, planned, read
from orchestrator.cli.follow import Follower
from orchestrator.cli.lifecycle import checked, importing, tell, up_arguments
from orchestrator.cli.main import INVALID, NO_DAEMON, fail
from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.client import LOOK_INTO_S, Client
from orchestrator.views.changes_text import changes_text
from orchestrator.wire.changes import Change, Changes


def difference(file: Path, engine: str, *, as_json: bool = False, ci: bool = False) -> int:
    """Print what `up` would do to what runs. Starts nothing, not even a daemon."""
    read(file, engine=engine_choice(engine))
    arguments = up_arguments(file, engine, ci=ci)
    with Client(dirs().run) as client:
        try:
            reply = checked(client.call("difference", LOOK_INTO_S, importing, **arguments))
            found = msgspec.convert(reply.data, Changes)
        except NoDaemonError:
            found = _all_new(file, engine)
    if as_json:
        plain = msgspec.to_builtins(found)
        print(json.dumps(plain, indent=2))
    else:
        sys.stdout.write(changes_text(found))
    return 0


def _all_new(file: Path, engine: str) -> Changes:
    """Without a daemon nothing is up, and everything would start."""
    plan = planned(read(file), engine)
    return Changes(
        topology=plan.topology,
        adopted=False,
        changes=[Change(replica=str(replica), kind="add") for replica in plan.replicas],
    )


def scale(roles: list[str], *, wait: bool) -> int:
    """Ask for other numbers of replicas, and wait until they are there."""
    wanted = dict(_parsed(each) for each in roles)
    with Client(dirs().run) as client:
        try:
            reply = checked(client.call("scale", replicas=wanted))
            tell(reply)
            name = reply.data["topology"]
            return settle(Follower(client, name), name, "scaled") if wait else 0
        except NoDaemonError:
            fail(dirs().absence(), NO_DAEMON)


def settle(follower: Follower, name: str, done: str) -> int:
    """Wait until a change is applied; 1 with the reason when it was halted or nothing answers."""
    settled = follower.until_settled()
    if settled is None:
        fail(f"{name} was taken down meanwhile")
    if settled.rollout == "halted":
        fail(f"{name}: {settled.rollout_note}")
    if settled.health not in {"ready", "stopped"}:
        fail(f"{name} {settled.health}: {settled.reason}")
    print(f"{name}: {done}")
    return 0


def _parsed(text: str) -> tuple[str, int]:
    role, equals, number = text.partition("=")
    if not role or not equals or not number.isascii() or not number.isdigit():
        fail(f"{text!r}: write ROLE=N, or TOPOLOGY/ROLE=N", INVALID)
    return role, int(number)
