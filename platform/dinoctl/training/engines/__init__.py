"""Engines: one contract (``base``), several ways to shard."""
