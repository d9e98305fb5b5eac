"""Verbs: arguments in, text out. Nothing is decided here."""
