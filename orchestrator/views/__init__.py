"""How things look: a snapshot becomes a table, a live display, or the TUI. Nothing is decided here.

One road for all of them: `rows` says what there is to show, `ink` holds styled text that knows
nothing of terminals, and the last step of each view turns ink into plain text, ANSI or widgets.
Importing the table costs neither rich nor textual, because `status` has to answer at once.
"""
