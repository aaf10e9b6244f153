"""Compiled loops for blocks on CPUs."""
