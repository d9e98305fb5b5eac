"""The OpenAI-compatible endpoint: HTTP in, request plane out, supervised like every worker.

A request's way: `listener` (uvicorn's protocol) -> `app` (our own paths, admission) -> `intake`
(what may come in) -> `upstreams` and `picks` (who gets it) -> `relay` (attempts, retry, bytes
out), with `link` being one worker's connection and `exchange` one attempt on it. `retries`,
`picks`, `intake`, `problems` and `table` are pure; everything that waits is in the others.
"""
