"""Things that tests of several rooms share; importable as `support` (pytest puts `tests` on the path)."""
