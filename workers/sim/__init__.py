"""The simulated engine: real OpenAI shapes, exact tokens, a model of time, faults on demand.

It stands where vLLM stands, behind the same `Engine` protocol and the same request plane, so that
a laptop and CI run the same topology, and a test can ask for a crash at the seventh token.
"""
