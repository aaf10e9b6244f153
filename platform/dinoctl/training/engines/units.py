"""The modules that sharding engines gather whole: code inside one of them may use the parameters of its parts."""

from torch import nn

from dinoctl.model import ProjectionHead
from dinoctl.model.layers import Block, PatchEmbed


def units(learner: nn.Module) -> list[nn.Module]:
    """Blocks, heads and patch embeddings, in the order of construction."""
    return [module for module in learner.modules() if isinstance(module, Block | PatchEmbed | ProjectionHead)]
