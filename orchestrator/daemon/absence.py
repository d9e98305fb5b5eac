"""The two ways in which a daemon can fail to answer. Light, so that any verb may import it."""


class NoDaemonError(Exception):
    """No daemon holds this run directory's lock."""


class DaemonSilentError(Exception):
    """The daemon holds its lock and doesn't answer; the text names it."""
