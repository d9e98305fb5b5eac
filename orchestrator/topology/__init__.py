"""The topology file: schema, loading with line numbers, every complaint at once, JSON Schema.

`load.load` is the one door: whoever holds a `Topology` holds one that was read from a whole file,
had its variables expanded and its defaults filled in, and passed every check that needs no machine.
"""
