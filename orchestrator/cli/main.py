"""The command line's entry: every verb, and what becomes of errors.

Verbs are thin: they turn arguments into a question for the daemon and its answer into text. What
they need is imported inside each, because `status` has 300 ms and most of that is importing.

Exit status: 0 done; 1 it failed (the reason is the last line); 2 usage or an invalid topology;
3 no daemon, or `up --exit-on-failed` gave up; 130 interrupted.
"""

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from orchestrator import __version__
from orchestrator.cli import parts
from orchestrator.daemon.absence import DaemonNotStartedError, DaemonSilentError, NoDaemonError

GARBAGE_MIN = 100_000
"""Objects before garbage is looked for: imports make many and no garbage, a verb is soon over."""

INVALID = 2
NO_DAEMON = 3
GIVEN_UP = 3
"""`up --exit-on-failed` took everything down because a replica was given up: no daemon then."""
INTERRUPTED = 130


class ReaderGoneError(Exception):
    """Whoever read our output reads no more: `dynorch logs -f | head`. No failure of ours."""


class Verbs(typer.core.TyperGroup):
    """Keeps a broken pipe from typer, which would make it an exit with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error


app = typer.Typer(
    name="dynorch",
    cls=Verbs,
    help="One TOML file describes an LLM serving deployment on this machine: dynorch places it, "
    "starts it, watches it, explains and restarts what fails.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 1 it failed (the reason is the last line); 2 usage or an invalid "
    "topology; 3 no daemon, or `up --exit-on-failed` gave up; 130 interrupted.",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The topology, a TOML file.")]
Engine = Annotated[
    str,
    typer.Option(
        help="vllm or sim: overrides what the topology says. auto leaves it alone.", metavar="NAME"
    ),
]
Lines = Annotated[
    int, typer.Option("-n", "--lines", metavar="N", min=0, help="So many from the end.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def fail(text: str, code: int = 1) -> NoReturn:
    """Print why, as the last line, and exit."""
    print(text, file=sys.stderr)
    raise typer.Exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"dynorch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,  # what is wrong with it is said where it is used
            help="Where the daemon lives; else $XDG_RUNTIME_DIR/dynorch, else /tmp/dynorch-UID.",
            envvar="DYNORCH_RUN_DIR",
            show_default=False,
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,  # what is wrong with it is said where it is used
            help="Logs and journal; else $XDG_STATE_HOME/dynorch, else ~/.local/state/dynorch.",
            envvar="DYNORCH_STATE_DIR",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Options of every verb; they reach the daemon and its children as environment."""
    if run_dir is not None:
        os.environ["DYNORCH_RUN_DIR"] = str(run_dir.absolute())
    if state_dir is not None:
        os.environ["DYNORCH_STATE_DIR"] = str(state_dir.absolute())


@app.command()
def up(
    file: File,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return when it answers, instead of staying.")
    ] = False,
    engine: Engine = "auto",
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would start, restart and stop.")
    ] = False,
    exit_on_failed: Annotated[
        bool,
        typer.Option(
            "--exit-on-failed",
            help="When a replica is given up, stop the rest in order and exit with 3; "
            "failures.jsonl in the state directory says why.",
        ),
    ] = False,
    ci: Annotated[
        bool,
        typer.Option(
            "--ci",
            help="Plain lines, --exit-on-failed, and no GPU is waited for longer than 120s unless "
            "the file says so.",
        ),
    ] = False,
) -> None:
    """Serve a topology until Ctrl-C; with -d until `down`. Ready means that it answers.

    The file is validated and the workers are placed before anything starts. A daemon is started if
    none runs. Where a topology of this name is up already, what has changed in the file is applied:
    only replicas that it concerns restart, in each role one after the other, while the rest serves.
    """
    from orchestrator.cli import early

    if dry_run:
        from orchestrator.cli import change

        raise typer.Exit(change.difference(file, engine, ci=ci))
    with early.daemon() as standby:
        from orchestrator.cli import lifecycle

        strict = exit_on_failed or ci
        raise typer.Exit(
            lifecycle.up(file, engine, detach=detach, strict=strict, ci=ci, standby=standby)
        )


@app.command()
def down(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The topology; all of them if absent.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Kill instead of draining.")] = False,
) -> None:
    """Drain, stop, and verify that nothing is left."""
    from orchestrator.cli import lifecycle

    raise typer.Exit(lifecycle.down(name, now=now))


@app.command()
def status(json: AsJson = False) -> None:
    """What runs, what doesn't, and why. Starts no daemon; exit 3 when there is none."""
    from orchestrator.cli import look

    raise typer.Exit(look.status(as_json=json))


@app.command()
def top() -> None:
    """Watch it live: phases, reasons, restarts, logs."""
    from orchestrator.cli import look

    raise typer.Exit(look.top())


@app.command()
def logs(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="A topology, `topology/role`, replica, or worker (`agg/worker-0.0`); else all.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    lines: Lines = 50,
) -> None:
    """Show workers' logs, several at once with a prefix. Needs no daemon."""
    from orchestrator.cli import look

    raise typer.Exit(look.logs(target, follow=follow, lines=lines))


@app.command()
def events(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they come.")] = False,
    lines: Lines = 50,
    json: AsJson = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decide all of it again, and compare; then exit.")
    ] = False,
) -> None:
    """Show what happened and why: the journal. Needs no daemon."""
    from orchestrator.cli import look

    if verify:
        raise typer.Exit(look.verify())
    raise typer.Exit(look.events(follow=follow, lines=lines, as_json=json))


@app.command()
def validate(file: File) -> None:
    """Check a topology and print every complaint with its line. Starts nothing."""
    from orchestrator.cli import files

    raise typer.Exit(files.validate(file))


@app.command()
def plan(
    file: File,
    engine: Engine = "auto",
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",  # without it, typer takes the metavar for the name
            metavar="GPUS",
            help="Plan for these instead of this machine's: 8xH100, 2xNAME:80GiB:pcie, @FILE.",
        ),
    ] = None,
    json: AsJson = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what `up` would change of what runs, and why.")
    ] = False,
) -> None:
    """Show what would run where: argv, environment, GPUs, ports. Starts nothing."""
    from orchestrator.cli import change, files

    if diff:
        if gpus:
            fail("--diff compares with what runs on this machine; leave --gpus out", INVALID)
        raise typer.Exit(change.difference(file, engine, as_json=json))
    raise typer.Exit(files.plan(file, engine, gpus, as_json=json))


@app.command()
def schema(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write to this file."),
    ] = None,
) -> None:
    """Print the topology's JSON Schema, for editors."""
    from orchestrator.cli import files

    raise typer.Exit(files.schema(output))


@app.command()
def smoke(file: File, engine: Engine = "auto") -> None:
    """For CI: up, real requests, down, and prove that nothing is left.

    Uses directories of its own, so it doesn't see a daemon that runs; the topology's port must be
    free. The last line says what failed, and where the logs are kept.
    """
    from orchestrator.cli import smoke as smoke_

    raise typer.Exit(smoke_.smoke(file, engine))


@app.command()
def daemon(
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Upgrade: take over from the daemon that runs, in the background."
        ),
    ] = False,
) -> None:
    """Run the daemon in the foreground, for systemd. `up` starts one by itself if there is none.

    It adopts what an earlier daemon left running. SIGTERM takes all topologies down, then ends it;
    SIGKILL ends it alone, and the workers go on.
    """
    if replace:
        from orchestrator.cli import upgrade

        raise typer.Exit(upgrade.replace())
    from orchestrator.daemon.entry import run

    raise typer.Exit(run(on_demand=False, ready_fd=-1))


@app.command()
def export(
    form: Annotated[str, typer.Argument(help="systemd", metavar="FORMAT")],
    file: File,
    user: Annotated[bool, typer.Option("--user", help="For `systemctl --user`.")] = False,
) -> None:
    """Print a systemd unit that serves a topology: sudo tee /etc/systemd/system/NAME.service.

    The unit's daemon is restarted alone if it dies, and adopts the workers; `systemctl reload`
    is `dynorch up` of the file as it is then.
    """
    from orchestrator.cli import export as export_

    if form != "systemd":
        fail(f"{form}: an unknown format; there is only: systemd", INVALID)
    raise typer.Exit(export_.systemd(file, for_user=user))


parts.register(app)


def _not_built(name: str, what: str) -> None:
    @app.command(name, help=f"(not built yet) {what}",
                 context_settings={"ignore_unknown_options": True})  # fmt: skip
    def verb(_args: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        fail(f"`dynorch {name}` is not built yet", INVALID)


for _name, _what in {
    "doctor": "Check driver, CUDA, vLLM, /dev/shm, ports, limits.",
    "init": "Write a topology.",
    "engine": "Sleep, wake, LoRA, profile.",
}.items():
    _not_built(_name, _what)


def main() -> None:
    """Run a verb. What nobody foresaw becomes one line too; DYNORCH_DEBUG=1 shows where."""
    gc.set_threshold(GARBAGE_MIN)
    if sys.stdout is None:  # closed by the caller, as in `dynorch status >&-`
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    try:
        app(prog_name="dynorch")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (ReaderGoneError, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still in the buffer
        sys.exit(0)
    except (DaemonSilentError, DaemonNotStartedError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except NoDaemonError:
        from orchestrator.cli.dirs import dirs

        print(dirs().absence(), file=sys.stderr)
        sys.exit(NO_DAEMON)
    except OSError as error:  # the machine's refusal, not a bug: no such directory, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the entry: one clear line beats a traceback
        if os.environ.get("DYNORCH_DEBUG"):
            traceback.print_exc()
        print(f"{type(error).__name__}: {error} (a bug in dynorch; DYNORCH_DEBUG=1 shows more)",
              file=sys.stderr)  # fmt: skip
        sys.exit(1)


if __name__ == "__main__":
    main()
