"""Metrics, gates and the model registry.

Training appends to a spool on its own disk and waits for nobody; a shipper carries the points to MLflow exactly once. A
gate is a pure function of evidence. The registry gives an alias only to a version whose gate passed. `spool`, `jsonnum`
and `gate` never import mlflow, and the others import it only when a client is made.
"""
