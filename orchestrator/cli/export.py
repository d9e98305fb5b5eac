"""`dynorch export`: a topology in the words of another program, on stdout; nothing is changed."""

import getpass
import os
import sys
from pathlib import Path

from orchestrator.cli.dirs import dirs
from orchestrator.cli.files import read
from orchestrator.topology.schema import Topology
from orchestrator.views.systemd_unit import Service, render


def systemd(file: Path, *, for_user: bool) -> int:
    """Print a systemd unit that serves this file."""
    file = file.absolute()
    topology = read(file)
    places = dirs()
    service = Service(
        name=topology.name,
        file=file,
        dynorch=(sys.executable, "-m", "orchestrator.cli.main"),
        run_dir=places.run,
        state_dir=places.state,
        stop_s=_stop_s(topology),
        user=getpass.getuser(),
    )
    sys.stdout.write(render(service, for_user=for_user))
    if not for_user and "XDG_RUNTIME_DIR" in os.environ and "DYNORCH_RUN_DIR" not in os.environ:
        print(
            f"note: {places.run} is gone when you log out; for a system service set "
            "DYNORCH_RUN_DIR, or use --user",
            file=sys.stderr,
        )
    return 0


def _stop_s(topology: Topology) -> float:
    """Bound the time of a whole stop: as if every part were a level of its own."""
    parts = [topology.frontend, *topology.roles.values(), *topology.processes.values()]
    stops = [part.stop for part in parts if part is not None]
    return sum(s.drain_s + s.grace_s + s.linger_s + s.kill_timeout_s for s in stops)
