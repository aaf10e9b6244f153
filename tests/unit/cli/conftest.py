from cluster_desk import desk

__all__ = ["desk"]
