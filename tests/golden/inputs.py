"""Rebuilds every case's inputs from its entry in cases.json (see README.md). Arrays are numpy float32, masks bool."""

import numpy as np
from weights import array, labels, masks, state_dict


def weights_of(case, prefix=""):
    return state_dict(
        {k: tuple(v) for k, v in case["shapes"].items()}, case["salt"] + prefix, case["scale"], case["gamma"]
    )


def vit(case):
    patch = case["net"]["patch_size"]
    tokens = (case["height"] // patch) * (case["width"] // patch)
    images = array("images", (case["batch"], 3, case["height"], case["width"]), case["salt"])
    mask = (
        None if case["mask_ratio"] is None else masks("masks", case["batch"], tokens, case["mask_ratio"], case["salt"])
    )
    return images, mask


def dino(case):
    """Three steps of teacher logits (crop-major: all rows of crop 1, then crop 2), student logits for the last one."""
    rows, k, salt = 2 * case["batch"], case["prototypes"], case["salt"]
    teacher = [array(f"teacher{i}", (rows, k), salt, 0.3) for i in range(3)]
    student_global = array("student_global", (rows, k), salt, 0.3)
    student_local = array("student_local", (case["local_crops"] * case["batch"], k), salt, 0.3)
    return teacher, student_global, student_local


def ibot(case):
    """Masks over 2*batch crops; three steps of teacher logits at the masked tokens, student logits for the last one."""
    rows, k, salt = 2 * case["batch"], case["prototypes"], case["salt"]
    mask = masks("masks", rows, case["tokens"], case["mask_ratio"], salt)
    count = int(mask.sum())
    teacher = [array(f"teacher{i}", (count, k), salt, 0.3) for i in range(3)]
    return mask, teacher, array("student", (count, k), salt, 0.3)


def koleo(case):
    return array("features", (case["batch"], case["dim"]), case["salt"])


def head(case):
    rows = array("features", (case["rows"], case["in_dim"]), case["salt"])
    return rows, array("output_gradient", (case["rows"], case["prototypes"]), case["salt"])


def knn(case):
    """L2-normalised features around random class centres, and labels; train first, then test."""
    count, salt = case["train"] + case["test"], case["salt"]
    target = labels("labels", count, case["classes"], salt)
    centres = array("centres", (case["classes"], case["dim"]), salt)
    features = centres[target] + array("noise", (count, case["dim"]), salt, case["noise"])
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    n = case["train"]
    return features[:n], target[:n], features[n:], target[n:]


def step(case, index):
    """Crop-major global and local images and the global masks of optimisation step `index`."""
    batch, local, big, small, salt = (
        case["batch"],
        case["local_crops"],
        case["global_size"],
        case["local_size"],
        case["salt"],
    )
    tokens = (big // case["net"]["patch_size"]) ** 2
    return (
        array(f"global{index}", (2 * batch, 3, big, big), salt),
        array(f"local{index}", (local * batch, 3, small, small), salt),
        masks(f"masks{index}", 2 * batch, tokens, case["mask_ratio"], salt),
    )


def probe(name, shape):
    """Unit-scale random direction: an array is summarised by sum(array * probe) / sqrt(size)."""
    return array("probe:" + name, shape).astype(np.float64)


def project(name, value):
    value = np.asarray(value, dtype=np.float64)
    return float((value * probe(name, value.shape)).sum() / np.sqrt(value.size))


def vit_summary(cls, reg, patch):
    """What is stored of a feature set: cls and registers whole, of the patches some tokens and three reductions."""
    direction = probe("token", (patch.shape[-1],)) / np.sqrt(patch.shape[-1])
    return {
        "cls": cls,
        "reg": reg,
        "patch_first4": patch[:, :4],
        "patch_last2": patch[:, -2:],
        "patch_mean": patch.mean(1),
        "patch_std": patch.std((1, 2)),
        "patch_probe": patch @ direction,
    }
