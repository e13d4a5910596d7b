"""The command line: each command parses, composes, calls. What it calls is usable from Python."""
