"""The command line: one file a group of commands; heavy modules are imported inside the commands."""
