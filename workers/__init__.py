"""The processes that dynorch starts: engines and the frontend.

A worker imports `orchestrator.wire` and nothing else of the orchestrator.
"""
