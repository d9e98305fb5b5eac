"""The ways in which a daemon can fail to answer. Light, so that any verb may import it."""


class NoDaemonError(Exception):
    """No daemon holds this run directory's lock."""


class DaemonNotStartedError(Exception):
    """It ended, or said nothing, before it listened; the text is its own last line."""


class DaemonSilentError(Exception):
    """The daemon holds its lock and doesn't answer; the text names it."""
