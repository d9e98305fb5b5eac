"""The machine: zygote, shim, process trees, logs, run directory, links, GPUs, ports.

What runs inside zygote and shim is standard library only and light: a foreign interpreter may run
it, and every worker pays for it. These are `procfs`, `prctl`, `title`, `framing`, `spawn`,
`log_file`, `shm`, `tree`, `child`, `clients`, `shim` and `zygote`; a test holds them to it.
"""
