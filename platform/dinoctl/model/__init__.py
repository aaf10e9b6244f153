"""Backbones, heads and their weights: pure torch, in the names and shapes of the official DINOv2 release."""

from dinoctl.model.config import RELEASED, ViTConfig
from dinoctl.model.export import Exported, load_export, save_export
from dinoctl.model.features import Features, Read
from dinoctl.model.heads import HeadArguments, ProjectionHead, WeightNormLinear, head_arguments
from dinoctl.model.names import from_huggingface, to_huggingface, to_timm
from dinoctl.model.positions import interpolate_pos_embed, resize_pos_embed
from dinoctl.model.vit import VisionTransformer
from dinoctl.model.weights import OfficialState, check_fits, infer_config, load_strict, read_state_dict, to_official

__all__ = [
    "RELEASED",
    "Exported",
    "Features",
    "HeadArguments",
    "OfficialState",
    "ProjectionHead",
    "Read",
    "ViTConfig",
    "VisionTransformer",
    "WeightNormLinear",
    "check_fits",
    "from_huggingface",
    "head_arguments",
    "infer_config",
    "interpolate_pos_embed",
    "load_export",
    "load_strict",
    "read_state_dict",
    "resize_pos_embed",
    "save_export",
    "to_huggingface",
    "to_official",
    "to_timm",
]
