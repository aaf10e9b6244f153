"""A look at what a job has learned, left beside its export. For people: nothing depends on it."""

import sys

import numpy as np
import torch

from dinoctl.data.batch import normalise
from dinoctl.data.dataset import Dataset
from dinoctl.data.eval_set import EvalSet
from dinoctl.evaluation.pictures import pca_picture
from dinoctl.handover.attempt import Attempt
from dinoctl.model import VisionTransformer
from dinoctl.spec.policy import Gate
from dinoctl.stages.data import dataset_uri
from dinoctl.stages.measure import Normalisation
from dinoctl.training.context import Context

PCA_PICTURE = "pictures/pca.png"
_IMAGES = 16


def draw_pictures(attempt: Attempt, context: Context, backbone: VisionTransformer, norm: Normalisation) -> None:
    """Writes ``pictures/pca.png`` of the gate's test images, if the job has a gate. Called by rank 0.

    Never fails: a trained model is worth more than its picture. What went wrong is said on standard error.
    """
    gate = attempt.spec.gate
    if gate is None:
        return
    try:
        attempt.storage.write(PCA_PICTURE, _pca(context, backbone, gate, norm))
    except Exception as error:
        sys.stderr.write(f"{attempt.name}: no picture of the features was drawn: {type(error).__name__}: {error}\n")


def _pca(context: Context, backbone: VisionTransformer, gate: Gate, norm: Normalisation) -> bytes:
    size = gate.knn.image_size or 224
    dataset = Dataset.open(dataset_uri(gate.dataset), gate.test_split)
    images = EvalSet(dataset, size, gate.knn.resize or round(size * 256 / 224))
    # Evenly over the split: its first images could all be of one class.
    chosen = np.unique(np.linspace(0, len(dataset) - 1, _IMAGES).round().astype(int)).tolist()
    originals = torch.from_numpy(np.stack([images.image(i) for i in chosen]))
    return pca_picture(backbone, normalise(originals, norm.mean, norm.std).to(context.device), originals)
