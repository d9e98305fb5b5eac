"""The supervisors that benchmarks/supervise.py compares, each behind the same few words.

A rival gets its programs as name -> argv, writes its own configuration with its own defaults (but
for delays between restarts, which are set as short as it allows), and is started and stopped by its
own commands. Which ones take part depends on what is installed: supervisor and circus from PyPI,
runit and s6 from Debian's packages; `--rivals DIR` names the environment that has the first two.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

Programs = dict[str, list[str]]


def run(*argv: object, env: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        [*map(str, argv)], env=env, check=check, capture_output=True, text=True, timeout=120
    )
    return done.stdout


class Rival:
    """One supervisor in a directory of its own."""

    name = ""
    env: dict[str, str] | None = None

    def __init__(self, root: Path, tools: Path) -> None:
        self.root = root
        self.tools = tools
        self.daemon: subprocess.Popen[bytes] | None = None

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=f"{self.tools}:{os.environ['PATH']}")

    def there(self) -> bool:
        """Whether it is installed."""
        raise NotImplementedError

    def write(self, programs: Programs) -> None:
        """Write the configuration."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the daemon, which starts all programs; needn't wait for them."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop all programs in the way its manual tells."""
        raise NotImplementedError

    def supervisors(self) -> list[int]:
        """Pids of whatever supervises: the daemon first, then processes per program."""
        assert self.daemon is not None
        return [self.daemon.pid]

    def logs(self, name: str) -> list[Path]:
        """The log files of a program."""
        return sorted(self.root.glob(f"{name}.log*"))

    def kill_daemon(self) -> None:
        """`kill -9` of the daemon alone."""
        os.kill(self.supervisors()[0], signal.SIGKILL)
        if self.daemon is not None:
            self.daemon.wait()

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()

    def popen(self, *argv: object) -> None:
        with (self.root / "daemon.out").open("ab") as out:
            self.daemon = subprocess.Popen(
                [*map(str, argv)], cwd=self.root, env=self.env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip


class Dynorch(Rival):
    name = "dynorch"

    def __init__(self, root: Path, tools: Path) -> None:
        super().__init__(root, tools)
        self.env = dict(os.environ, DYNORCH_RUN_DIR=f"{root}/r", DYNORCH_STATE_DIR=f"{root}/s")
        self.file = root / "t.toml"

    def verb(self, *words: str) -> str:
        return run(sys.executable, "-m", "orchestrator.cli.main", *words, env=self.env)

    def there(self) -> bool:
        return True

    def write(self, programs: Programs) -> None:
        text = (
            'name = "bench"\nrestart = { backoff-initial = "0s", intensity = 1000000 }\n'
            'log = { max-size = "1GiB" }\n'
            # A program counts as started when it runs, as with most rivals, not a second later.
            'start = { settle = "0s" }\n'
        )
        for name, argv in programs.items():
            words = ", ".join(f"'{word}'" for word in argv)
            text += f"[processes.{name}]\ncommand = [{words}]\n"
        self.file.write_text(text)

    def start(self) -> None:
        """As with the rivals, nobody waits for more than the programs' first words."""
        self.popen(sys.executable, "-m", "orchestrator.cli.main", "up", "-d", self.file)

    def stop(self) -> None:
        self.verb("down")

    def supervisors(self) -> list[int]:
        import json  # noqa: PLC0415 - one rival needs it

        assert self.daemon is not None
        self.daemon.wait()  # that was `up`
        pid = json.loads(self.verb("status", "--json"))["daemon"]["pid"]
        ours = ("dynorch: zygote", "dynorch: spare")
        zygote = [
            process
            for process in psutil.Process(pid).children(recursive=True)
            if (process.cmdline() or [""])[0].startswith(ours)
        ]
        shims = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or [""])[0].startswith("dynorch: shim bench/")
        ]
        return [pid, *shims, *(child.pid for child in zygote)]

    def logs(self, name: str) -> list[Path]:
        return sorted(Path(f"{self.root}/s").rglob(f"{name}-0.0.log*"))

    def end(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.verb("down", "--now")


class Supervisord(Rival):
    name = "supervisord"

    def there(self) -> bool:
        return self.find("supervisord") is not None

    def write(self, programs: Programs) -> None:
        text = (
            f"[supervisord]\nlogfile={self.root}/d.log\npidfile={self.root}/d.pid\nminfds=8192\n"
            f"[unix_http_server]\nfile={self.root}/d.sock\n"
            "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory ="
            " supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{self.root}/d.sock\n"
        )
        for name, argv in programs.items():
            text += (
                f"[program:{name}]\ncommand={shlex.join(argv)}\nautorestart=true\n"
                f"redirect_stderr=true\nstdout_logfile={self.root}/{name}.log\n"
                "stdout_logfile_maxbytes=0\n"
            )
        (self.root / "d.conf").write_text(text)

    def start(self) -> None:
        self.popen(self.find("supervisord"), "-n", "-c", self.root / "d.conf")

    def stop(self) -> None:
        run(self.find("supervisorctl"), "-c", self.root / "d.conf", "stop", "all")


class Circus(Rival):
    name = "circus"

    def there(self) -> bool:
        return self.find("circusd") is not None

    def write(self, programs: Programs) -> None:
        text = (
            f"[circus]\nendpoint = ipc://{self.root}/e\npubsub_endpoint = ipc://{self.root}/p\n"
            "check_delay = 5\n"
        )
        for name, argv in programs.items():
            text += (
                f"[watcher:{name}]\ncmd = {argv[0]}\nargs = {shlex.join(argv[1:])}\n"
                f"stdout_stream.class = FileStream\nstdout_stream.filename = {self.root}/{name}.log"
                "\nstdout_stream.max_bytes = 0\ncopy_env = true\n"
            )
        (self.root / "d.ini").write_text(text)

    def start(self) -> None:
        self.popen(self.find("circusd"), self.root / "d.ini")

    def stop(self) -> None:
        run(self.find("circusctl"), "--endpoint", f"ipc://{self.root}/e", "stop", "--waiting")


class Runit(Rival):
    name = "runit"
    runner, logger = "runsvdir", "svlogd"

    def there(self) -> bool:
        return all(map(self.find, (self.runner, self.logger)))

    def script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)

    def write(self, programs: Programs) -> None:
        services = self.root / "sv"
        services.mkdir(exist_ok=True)
        for name, argv in programs.items():
            self.script(services / name / "run", f"exec {shlex.join(argv)} 2>&1")
            if name.startswith("log"):
                (self.root / name).mkdir()
                self.script(services / name / "log/run", self.log_command(self.root / name))

    def log_command(self, folder: Path) -> str:
        (folder / "config").write_text("s0\nn0\n")
        return f"exec svlogd {folder}"

    def logs(self, name: str) -> list[Path]:
        return [*(self.root / name).glob("@*"), self.root / name / "current"]

    def start(self) -> None:
        self.popen(self.find(self.runner), self.root / "sv")

    def stop(self) -> None:
        run("sv", "-w", "60", "down", *(self.root / "sv").iterdir())

    def supervisors(self) -> list[int]:
        found = []
        for process in psutil.process_iter(["name", "cwd"]):
            mine = (process.info["cwd"] or "").startswith(str(self.root / "sv"))
            if mine and process.info["name"] in {"runsv", "s6-supervise"}:
                found.append(process.pid)
        assert self.daemon is not None
        return [self.daemon.pid, *found]

    def end(self) -> None:
        """As one would by hand: the tree of supervisors first, so that nothing comes back."""
        supervisors = self.supervisors()[1:]
        theirs = [
            child.pid
            for pid in supervisors
            for child in psutil.Process(pid).children(recursive=True)
        ]
        super().end()
        for pid in (*supervisors, *theirs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class S6(Runit):
    name = "s6"
    runner, logger = "s6-svscan", "s6-log"

    def log_command(self, folder: Path) -> str:
        return f"exec s6-log n0 s268435455 {folder}"

    def start(self) -> None:
        self.popen(self.find("s6-svscan"), "-c", "1000", self.root / "sv")

    def stop(self) -> None:
        folders = [path for path in (self.root / "sv").iterdir() if path.name[0] != "."]
        for folder in folders:
            run("s6-svc", "-d", folder)
        for folder in folders:
            run("s6-svwait", "-D", "-t", "60000", folder)


RIVALS = (Dynorch, Supervisord, Circus, Runit, S6)
