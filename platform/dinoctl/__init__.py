"""dinoctl: from a few lines of YAML to a DINOv2-class vision foundation model."""

__version__ = "0.1.0"
