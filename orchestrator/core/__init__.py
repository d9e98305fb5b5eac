"""Pure decisions: what should happen next, given what was asked and what has happened.

Nothing in here reads a clock, touches a file, or talks to a process. Time is an argument, the
world arrives as events in the past tense, and what is to be done leaves as actions in the
imperative. So every decision can be replayed, simulated by the thousand, and shown with its reason.
"""
