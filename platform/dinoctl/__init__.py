"""dinoctl: from a few lines of YAML to a DINOv2-class vision foundation model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinoctl.loading import load_backbone

__version__ = "0.1.0"
__all__ = ["__version__", "load_backbone"]


def __getattr__(name: str) -> object:
    """Imports torch for those who load a backbone, and for nobody else."""
    if name == "load_backbone":
        from dinoctl.loading import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
