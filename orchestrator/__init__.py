"""dynorch: a supervisor for LLM serving on one machine."""

__version__ = "0.1.0"
