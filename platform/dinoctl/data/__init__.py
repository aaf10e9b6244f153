"""Data: object storage, packed datasets, sample order, augmentation, masks and the training loader.

One direction of dependence: storage <- dataset <- (pack | order, decode, augment, mask) <- loader. Modules that a
loader's child processes import stay free of torch, so that a child starts in a fraction of a second.
"""
