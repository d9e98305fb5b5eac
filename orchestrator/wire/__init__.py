"""What crosses a process boundary: ids, messages, framing, socket set-up.

This is the only floor that both the orchestrator and the workers import, so it may depend on
nothing but msgspec, pyzmq and the standard library.
"""
