"""Real vLLM as an engine: the only package that imports vllm.

vLLM's own FastAPI application runs in this process as a plain ASGI callable, with no TCP port, so
whatever `vllm serve` answers, a worker answers, with vLLM's own code. Nothing of what we use is a
declared interface; every name of it is imported in `launch`, `arguments`, `preload` or `losses`,
and nowhere else.
"""
