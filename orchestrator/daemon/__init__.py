"""The loop that feeds the pure core and performs what it decides; and the way to talk to it."""
