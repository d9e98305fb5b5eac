"""Verbs on parts of a topology that is up: a role, a replica, a worker, or all of it."""

from typing import Annotated

import typer

NoWait = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="A topology, `topology/role`, or a replica (`topology/role-0`)."
    ),
]


def restart(
    target: Target,
    rolling: Annotated[
        bool, typer.Option("--rolling", help="In each role one replica after the other.")
    ] = False,
    no_wait: NoWait = False,
) -> None:
    """Drain, stop and start again, with a new incarnation."""
    from orchestrator.cli import lifecycle

    raise typer.Exit(lifecycle.order("restart", target, wait=not no_wait, rolling=rolling))


def start(target: Target, no_wait: NoWait = False) -> None:
    """Start what is stopped or has failed; forgives its past failures."""
    from orchestrator.cli import lifecycle

    raise typer.Exit(lifecycle.order("start", target, wait=not no_wait))


def stop(target: Target, no_wait: NoWait = False) -> None:
    """Stop a part of a topology and keep it stopped; who depends on it is stopped first."""
    from orchestrator.cli import lifecycle

    raise typer.Exit(lifecycle.order("stop", target, wait=not no_wait))


def drain(
    target: Target,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Stop what hasn't finished by then."),
    ] = None,
    no_wait: NoWait = False,
) -> None:
    """Take no new request, finish those that are open however long they take, then stop."""
    from orchestrator.cli import lifecycle

    raise typer.Exit(lifecycle.order("drain", target, wait=not no_wait, limit_s=timeout))


def scale(
    roles: Annotated[
        list[str],
        typer.Argument(metavar="ROLE=N...", help="`worker=3`, or `TOPOLOGY/ROLE=N`."),
    ],
    no_wait: NoWait = False,
) -> None:
    """Run another number of replicas, until `up FILE` returns to the file's.

    New ones are placed where there is room; the highest numbers drain and leave first.
    """
    from orchestrator.cli import change

    raise typer.Exit(change.scale(roles, wait=not no_wait))


def register(app: typer.Typer) -> None:
    """Make them verbs of the command line."""
    for verb in (restart, start, stop, drain, scale):
        app.command()(verb)
