"""A topology as a systemd service: the text of the unit file.

Two settings carry our promises over to systemd. `KillMode=process`: when the daemon dies, only it
is restarted; the workers serve on, and the next daemon adopts them. And a stop is ours: SIGTERM
makes the daemon stop everything in order, for which it gets the time that the topology allows.
"""

from pathlib import Path
from typing import NamedTuple

STOP_MARGIN_S = 30.0
"""What is left to the daemon, beside what the topology's own stop settings allow."""


class Service(NamedTuple):
    """What the unit depends on. `dynorch`: argv of the command; `stop_s`: the longest stop."""

    name: str
    file: Path
    dynorch: tuple[str, ...]
    run_dir: Path
    state_dir: Path
    stop_s: float
    user: str


def quoted(word: str) -> str:
    """Write one word as systemd reads it: specifiers and variables taken literally."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if set(word) & set(" \t'\"") or not word else word


def path(value: Path) -> str:
    """Write a path where systemd takes the rest of the line, unquoted."""
    return str(value).replace("%", "%%")


def render(service: Service, *, for_user: bool) -> str:
    """Render the unit; `for_user`: for `systemctl --user`, else for the system, as its user."""
    command = " ".join(map(quoted, service.dynorch))
    up = f"{command} up -d {quoted(str(service.file))}"
    run_dir, state_dir = str(service.run_dir), str(service.state_dir)
    lines = [
        "[Unit]",
        f"Description=dynorch, serving {service.name}".replace("%", "%%"),
        "Documentation=man:systemd.service(5)",
        "StartLimitIntervalSec=60",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        *([] if for_user else [f"User={service.user}"]),
        f"WorkingDirectory={path(service.file.parent)}",
        f"Environment={quoted(f'DYNORCH_RUN_DIR={run_dir}')}",
        f"Environment={quoted(f'DYNORCH_STATE_DIR={state_dir}')}",
        f"ExecStart={command} daemon",
        "# A topology that can't start is explained by `dynorch status`; the daemon stays.",
        f"ExecStartPost=-{up}",
        f"ExecReload={up}",
        "# Only the daemon is killed and restarted: workers serve on and are adopted.",
        "KillMode=process",
        "Delegate=yes",
        "Restart=always",
        "RestartSec=1",
        "WatchdogSec=30",
        "TimeoutStartSec=infinity",
        f"TimeoutStopSec={service.stop_s + STOP_MARGIN_S:.0f}",
        "LimitNOFILE=65536",
        "",
        "[Install]",
        f"WantedBy={'default' if for_user else 'multi-user'}.target",
    ]
    return "\n".join(lines) + "\n"
