"""What is learned: targets from the teacher, losses for the student. Tensors in, a scalar out; torch alone is needed.

Losses are computed in fp32 whatever the type of the logits and whether or not autocast is on. Ranks speak to each other
in the targets (Sinkhorn-Knopp and centering) and in grouped KoLeo; every other loss is that of the rank's own rows.
"""

from dinoctl.objective.centering import SinkhornKnopp, SoftmaxCenter
from dinoctl.objective.cross_entropy import soft_cross_entropy
from dinoctl.objective.dino import dino_global_loss, dino_local_loss, dino_pairs
from dinoctl.objective.features import feature_distance, view_distance
from dinoctl.objective.gram import gram_loss, resample_patches
from dinoctl.objective.ibot import ibot_loss
from dinoctl.objective.indicators import (
    agreement,
    effective_rank,
    feature_std,
    prototype_usage,
    spread_rows,
    target_entropy,
)
from dinoctl.objective.koleo import grouped_koleo_loss, koleo_loss
from dinoctl.objective.reduce import all_reduce_max, all_reduce_sum
from dinoctl.objective.sinkhorn import sinkhorn_knopp

__all__ = [
    "SinkhornKnopp",
    "SoftmaxCenter",
    "agreement",
    "all_reduce_max",
    "all_reduce_sum",
    "dino_global_loss",
    "dino_local_loss",
    "dino_pairs",
    "effective_rank",
    "feature_distance",
    "feature_std",
    "gram_loss",
    "grouped_koleo_loss",
    "ibot_loss",
    "koleo_loss",
    "prototype_usage",
    "resample_patches",
    "sinkhorn_knopp",
    "soft_cross_entropy",
    "spread_rows",
    "target_entropy",
    "view_distance",
]
