"""Opening what a stage reads."""

from dataclasses import dataclass

from dinoctl.data.dataset import Dataset
from dinoctl.data.order import Order, SampleOrder
from dinoctl.data.reader.cost import estimate
from dinoctl.data.reader.plan import most_bytes_of
from dinoctl.spec.errors import UserError
from dinoctl.spec.sources import DataSource, JobRef
from dinoctl.stages.recipe import Recipe


@dataclass(frozen=True)
class Data:
    """The opened parts of the training data, and the order over them."""

    parts: list[Dataset]
    order: Order
    hash: str


def open_data(recipe: Recipe, seed: int) -> Data:
    """Opens every part; raises UserError with the path for what is missing, empty or far too small."""
    parts = recipe.data.parts()
    opened = [Dataset.open(dataset_uri(part.source), part.split) for part in parts]
    for part, dataset in zip(parts, opened, strict=True):
        if len(dataset) == 0:
            raise UserError(f"{part.source} (split {part.split}) has no images")
        _check_enlargement(f"{part.source} (split {part.split})", dataset.median_side(), recipe)
    if len(opened) == 1:
        return Data(
            opened, SampleOrder(len(opened[0]), recipe.global_batch, seed, recipe.data.run_length), opened[0].hash
        )
    from dinoctl.data.mixture import MixtureOrder

    sources = [(len(dataset), part.weight) for dataset, part in zip(opened, parts, strict=True)]
    order = MixtureOrder(
        sources, recipe.global_batch, seed, run_length=recipe.data.run_length, homogeneous=recipe.data.homogeneous
    )
    return Data(opened, order, "+".join(dataset.hash for dataset in opened))


def foretell(recipe: Recipe, data: Data, world: int, students: int = 1) -> str:
    """What reading will take, in one line; empty where nothing lies on a bucket. ``world``: ranks that share a batch;
    ``students`` that read all of it, each with ranks of its own.
    """
    remote = [part.ranges() is not None for part in data.parts]
    if not any(remote):
        return ""
    parts = [
        (len(dataset), part.weight, dataset.info.mean_bytes if far else 0.0)
        for dataset, part, far in zip(data.parts, recipe.data.parts(), remote, strict=True)
    ]
    reader = recipe.data.reader
    cost = estimate(
        parts,
        steps=recipe.steps,
        global_batch=recipe.global_batch,
        run_length=recipe.data.run_length,
        most_bytes=most_bytes_of(reader.memory, -(-recipe.global_batch // world)),
        price_per_thousand=reader.price_per_thousand,
    )
    each = f", for each of {students} students" if students > 1 else ""
    return f"reading training data for all {recipe.steps} steps takes about {cost}{each}"


def _check_enlargement(name: str, side: int, recipe: Recipe) -> None:
    """Enlarging is legal (small scans do well at twice their size), but far beyond its pixels an image is a blur."""
    size = max(crops.global_crops.size for crops in recipe.crops.pairs())
    limit = recipe.data.max_enlargement
    if size > limit * side:
        raise UserError(
            f"{name}: the shorter side of the median image is {side} pixels; global crops of {size} pixels are "
            f"{size / side:.3g} times that, above data.maxEnlargement {limit:g}; make the crops {int(limit * side)} "
            "pixels or smaller, pack larger images, or raise data.maxEnlargement"
        )


def dataset_uri(source: DataSource) -> str:
    """The URI of a pinned source; raises UserError for one that is still a reference."""
    if isinstance(source, JobRef):
        raise UserError(f"job {source.job!r} is not pinned to its output; run it through its lifecycle")
    return source
