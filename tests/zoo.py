"""Programs that a supervisor meets, started as `python -I -S tests/zoo.py KIND FOLDER`.

Each process of a zoo appends one line to FOLDER/pids ("KIND PID") before it settles, so that a
test can count who was there and who still is. Nothing here sleeps: who waits, pauses until killed.

Those that multiply are bounded on their own, whatever becomes of their supervisor and of the test:
in number by their depth, and in time by an alarm that every one of them sets.
"""

import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()


STORM_S = 60
BORN = time.monotonic()


def bounded():
    """Let the kernel end this process when its kind has had its time; lost on fork."""
    left = BORN + STORM_S - time.monotonic()
    if left <= 0:
        os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, left)


def note(kind):
    fd = os.open(FOLDER / "pids", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{kind} {os.getpid()}\n".encode())
    os.close(fd)


def pause():
    while True:
        signal.pause()


def ignore_term():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def descend(kind, before=lambda: None, *, twice=False):
    """Fork one descendant that ignores TERM and stays."""
    if os.fork() == 0:
        before()
        if twice and os.fork():
            os._exit(0)
        ignore_term()
        note(kind)
        pause()


def family():
    """The four kinds of descendant."""
    descend("plain")
    descend("group", os.setpgrp)
    descend("session", os.setsid)
    descend("daemon", os.setsid, twice=True)


def on_term_count():
    """Count TERMs in a file; the process lives on."""

    def count(*_):
        with (FOLDER / "terms").open("a") as file:
            file.write("TERM\n")

    signal.signal(signal.SIGTERM, count)


def polite():
    """A family whose main exits with 7 on the first TERM."""
    family()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    note("main")
    pause()


def stubborn():
    """A family whose main only counts TERMs."""
    family()
    on_term_count()
    note("main")
    pause()


def quitter():
    """A family whose main leaves with 3 as soon as everybody is there."""
    (FOLDER / "pids").touch()
    family()
    while len((FOLDER / "pids").read_text().splitlines()) < 4:
        os.sched_yield()
    note("main")
    os._exit(3)


def hopper():
    """Processes that never stand still: each forks its successor and leaves.

    `os.setsid` for half of them, so that no group holds them all.
    """
    note("main")
    for number in range(6):
        if os.fork() == 0:
            if number % 2:
                os.setsid()
            note("hopper")
            hop(set_free=False)
    pause()


def hop(*, set_free):
    while True:
        bounded()
        if os.fork():
            os._exit(0)
        if set_free:
            os.setsid()


def fugitive():
    """One that sheds every sign by which it could be found, and never stands still."""
    note("main")
    if os.fork() == 0:
        os.setsid()
        shed_environment()
        for fd in (0, 1, 2):
            os.close(fd)
        note("fugitive")
        hop(set_free=True)
    pause()


def shed_environment():
    """Write over the environment area, as setproctitle does without SPT_NOENV."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    fd = os.open("/proc/self/mem", os.O_WRONLY)
    os.pwrite(fd, b"\0" * (end - start), start)
    os.close(fd)


def titled():
    """Two children that call themselves something else, one with its environment written over."""
    if os.fork() == 0:
        os.setsid()
        note("kept")
        pause()
    if os.fork() == 0:
        os.setsid()
        shed_environment()
        note("shed")
        pause()
    note("main")
    pause()


def storm():
    """Every process forks two and goes on forking for those that it lost; 63 in all, at most."""
    note("main")
    grow(5)


def grow(depth):
    bounded()
    while True:
        for _ in range(2 if depth else 0):
            if os.fork() == 0:
                grow(depth - 1)
        try:
            while True:
                os.wait()
                if os.fork() == 0:
                    grow(max(0, depth - 1))
        except ChildProcessError:
            pause()


def lines():
    """As many bytes as asked for in numbered lines, the last one written right before _exit."""
    total = int(sys.argv[3])
    width = int(sys.argv[4]) if len(sys.argv) > 4 else 100
    step = int(sys.argv[5]) if len(sys.argv) > 5 else 600
    done = number = 0
    while done < total:
        block = b"".join(
            f"{number + one:0{width - 1}d}\n".encode() for one in range(min(step, 1 << 16))
        )
        number += step
        done += len(block)
        view = memoryview(block)
        while view:
            view = view[os.write(1, view) :]
    os.write(1, b"the last line")
    os._exit(0)


def recorder():
    """A group in which everybody writes down each TERM it gets; main leaves a moment after its."""
    for number in range(3):
        if os.fork() == 0:
            on_term_note(f"child-{number}")
            note(f"child-{number}")
            pause()
    on_term_note("main", os._exit)
    note("main")
    pause()


def on_term_note(who, then=lambda _status: None):
    def heard(*_):
        with (FOLDER / "terms").open("a") as file:
            file.write(f"{who}\n")
        then(0)

    signal.signal(signal.SIGTERM, heard)


def comrade():
    """Leave only when as many as said were told to; write down both for everybody to see."""
    book, count = Path(sys.argv[3]), int(sys.argv[4])

    def write(what):
        with book.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def heard(*_):
        before = book.read_text().count("gone") if book.exists() else 0
        write("TERM")
        while book.read_text().count("TERM") < before + count:
            os.sched_yield()
        write("gone")
        os._exit(0)

    signal.signal(signal.SIGTERM, heard)
    note("main")
    pause()


def witness():
    """Write down who of the last life is still there, before anything else; then be a family."""
    book = Path(sys.argv[3])
    last = [line.split()[1] for line in book.read_text().splitlines()] if book.exists() else []
    alive = [pid for pid in last if running(pid)]
    with Path(f"{book}.seen").open("a") as file:
        file.write(f"{len(last)} {len(alive)}\n")
    book.unlink(missing_ok=True)
    family()
    note("main")
    while len((FOLDER / "pids").read_text().splitlines()) < 5:
        os.sched_yield()
    (FOLDER / "pids").replace(book)
    pause()


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def speaker():
    """Say one long line for each SIGUSR1, and leave a mark when it is said."""
    said = 0

    def speak(*_):
        nonlocal said
        said += 1
        os.write(1, f"line {said} ".encode().ljust(9999, b".") + b"\n")
        (FOLDER / f"said-{said}").touch()

    signal.signal(signal.SIGUSR1, speak)
    note("main")
    pause()


def noisy_exit():
    """Say something, leave a child that holds the output open, and wait for our end."""
    os.write(1, b"hello\n")
    descend("plain")
    note("main")
    pause()


def shared_memory():
    """A multiprocessing family with named memory, mapped by main and by a child of its own."""
    # Slow to import: the rest of the zoo starts without them.
    import mmap  # noqa: PLC0415
    from multiprocessing import shared_memory as shm  # noqa: PLC0415

    block = shm.SharedMemory(create=True, size=1 << 20)
    raw = f"/dev/shm/psm_zoo_{os.getpid()}"
    fd = os.open(raw, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.ftruncate(fd, 4096)
    held = mmap.mmap(fd, 4096)
    with (FOLDER / "names").open("a") as names:
        names.write(f"{block.name.lstrip('/')}\n{Path(raw).name}\n")
    if os.fork() == 0:
        note("child")
        pause()
    note("main")
    pause()
    held.close()


def sleeper():
    note("main")
    pause()


def ticker():
    """A numbered line every few milliseconds, for as long as it lives."""
    number = 0
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    note("main")
    while signal.sigwait([signal.SIGALRM]):
        os.write(1, b"%099d\n" % number)
        number += 1


def dawdler():
    """Ready at once; on TERM it asks for half a minute, and leaves when told to."""
    import socket  # noqa: PLC0415

    says = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    says.connect(os.environ["NOTIFY_SOCKET"])

    def heard(*_):
        says.send(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000")
        (FOLDER / "asked").touch()
        while not (FOLDER / "go").exists():
            os.sched_yield()
        (FOLDER / "done").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, heard)
    says.send(b"READY=1")
    note("main")
    pause()


def loader():
    """Deaf to TERM while it loads, which it does until SIGUSR1; then it is ready, told or not."""
    import socket  # noqa: PLC0415

    def loaded(*_):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as says:
            says.connect(os.environ["NOTIFY_SOCKET"])
            says.send(b"READY=1\nSTATUS=loaded")
        (FOLDER / "said").touch()

    on_term_count()
    signal.signal(signal.SIGUSR1, loaded)
    note("main")
    pause()


def mortal():
    """A family whose main says who it is, and leaves with 7 on TERM, after its last words."""
    family()

    def leave(*_):
        os.write(1, b"end of %d\n" % os.getpid())
        os._exit(7)

    signal.signal(signal.SIGTERM, leave)
    os.write(1, b"begin of %d\n" % os.getpid())
    note("main")
    pause()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
