"""What every engine worker shares: control session, ASGI bridge, readiness, drain, exit status.

An engine worker's entry function decodes its `WorkerConfig`, builds an `Engine` and returns what
`workers.runtime.serve.serve` returns.
"""
