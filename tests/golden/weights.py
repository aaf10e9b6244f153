"""Rule-made weights and inputs for the golden vectors: nothing random is stored, everything is rebuilt from a name.

An array depends only on its name, its shape and the case's salt:
    n = numpy.random.Generator(PCG64(crc32((salt + name).encode("utf8")))).standard_normal(shape)
Parameters: n * scale, with two exceptions so that the network is well conditioned:
    LayerScale gamma              -> gamma + 0.02 * n
    norm weights and weight_g     -> 1 + 0.02 * n
"""

import zlib

import numpy as np


def normal(name, shape, salt=""):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode("utf8"))))
    return rng.standard_normal(tuple(shape))


def parameter(name, shape, salt="", scale=0.02, gamma=0.1):
    n = normal(name, shape, salt)
    if name.endswith("gamma"):
        value = gamma + 0.02 * n
    elif name.endswith("weight_g") or ("norm" in name and name.endswith("weight")):
        value = 1.0 + 0.02 * n
    else:
        value = scale * n
    return value.astype(np.float32)


def state_dict(shapes, salt="", scale=0.02, gamma=0.1):
    """shapes: {official state-dict key: shape}. Sorted only for reproducible iteration; order does not matter."""
    return {name: parameter(name, shapes[name], salt, scale, gamma) for name in sorted(shapes)}


def array(name, shape, salt="", scale=1.0):
    """Inputs: images, features, logits."""
    return (scale * normal(name, shape, salt)).astype(np.float32)


def masks(name, rows, tokens, ratio, salt=""):
    """Boolean (rows, tokens): odd rows are unmasked, even rows have the round(ratio*tokens) smallest draws masked."""
    order = np.argsort(normal(name, (rows, tokens), salt), axis=1, kind="stable")
    out = np.zeros((rows, tokens), dtype=bool)
    for row in range(0, rows, 2):
        out[row, order[row, : round(ratio * tokens)]] = True
    return out


def labels(name, count, classes, salt=""):
    return np.argsort(normal(name, (count, classes), salt), axis=1, kind="stable")[:, 0].astype(np.int64)
