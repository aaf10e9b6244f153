"""Multi-crop: the views of an image, their sizes, and their distortions. Defaults are those of the released models."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dinoctl.spec.base import (
    PositiveInterval,
    PositiveRgb,
    Probability,
    Rgb,
    Section,
    ShareInterval,
    as_tuple,
    choice,
    derived,
    paper,
)


class GlobalCrops(Section):
    """The two large views, seen by student and teacher."""

    size: int = paper(224, "Side in pixels.", "paper Table 16", ge=4)
    scale: ShareInterval = paper((0.32, 1.0), "Share of the image area a crop covers.", "paper App. B.1")


class LocalCrops(Section):
    """The small views, seen by the student only."""

    count: int = paper(8, "Number of local crops of an image.", "paper App. B.1", ge=0)
    size: int | None = derived(
        "Side in pixels.",
        "7/16 of the global crops in whole patches: 98 of 224 at patch 14, 96 at patch 16 (code config)",
        ge=4,
    )
    scale: ShareInterval = paper((0.05, 0.32), "Share of the image area a crop covers.", "paper App. B.1")


class ColorJitter(Section):
    """Random brightness, contrast, saturation and hue, in random order."""

    probability: Probability = paper(0.8, "Chance that a crop is jittered.", "code augmentations.py")
    brightness: float = paper(0.4, "Factor is drawn from 1 ± this.", "code augmentations.py", ge=0)
    contrast: float = paper(0.4, "Factor is drawn from 1 ± this.", "code augmentations.py", ge=0)
    saturation: float = paper(0.2, "Factor is drawn from 1 ± this.", "code augmentations.py", ge=0)
    hue: float = paper(
        0.1, "Shift is drawn from ± this share of the colour circle.", "code augmentations.py", ge=0, le=0.5
    )


BLUR_CHANCES: dict[str, tuple[float, float, float]] = {"released": (0.0, 0.9, 0.5), "intended": (1.0, 0.1, 0.5)}
"""First global crop, second global crop, local crops."""


class Blur(Section):
    """Gaussian blur. The released code inverts its chances: it hands 1 - p to a transform that applies itself with the
    chance it is given. All released models were trained so; ``behaviour`` chooses.
    """

    behaviour: Literal["released", "intended"] = paper(
        "released",
        "Where the chances below come from: 0, 0.9, 0.5 as released, or 1, 0.1, 0.5 as intended (dinov2 PR 411).",
        "released behaviour",
    )
    first_global: Probability | None = derived("Chance for the first global crop.", "0 as released, 1 as intended")
    second_global: Probability | None = derived(
        "Chance for the second global crop.", "0.9 as released, 0.1 as intended"
    )
    local: Probability | None = derived("Chance for a local crop.", "0.5, either way")
    kernel: int = paper(9, "Kernel width in pixels, odd.", "code augmentations.py", ge=1)
    sigma: PositiveInterval = paper(
        (0.1, 2.0), "Standard deviation in pixels, drawn uniformly.", "code augmentations.py"
    )

    @model_validator(mode="after")
    def _odd(self) -> "Blur":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}; use {self.kernel - 1} or {self.kernel + 1}")
        return self

    def chances(self) -> tuple[float, float, float]:
        """Of the first global crop, the second, and local ones."""
        given = (self.first_global, self.second_global, self.local)
        preset = BLUR_CHANCES[self.behaviour]
        return tuple(p if chance is None else chance for chance, p in zip(given, preset, strict=True))  # type: ignore[return-value]


Distortion = Literal["horizontalFlip", "colorJitter", "grayscale", "blur", "solarize"]
RELEASED_ORDER: tuple[Distortion, ...] = get_args(Distortion)


def _each_once(order: tuple[Distortion, ...]) -> tuple[Distortion, ...]:
    if sorted(order) != sorted(RELEASED_ORDER):
        raise ValueError(f"name each of {', '.join(RELEASED_ORDER)} exactly once; a chance of 0 switches one off")
    return order


class Augmentation(Section):
    """Distortions of a crop after it was cut and resized; normalising comes last."""

    order: Annotated[tuple[Distortion, ...], BeforeValidator(as_tuple), AfterValidator(_each_once)] = paper(
        RELEASED_ORDER, "Order in which the distortions are applied.", "code augmentations.py"
    )
    horizontal_flip: Probability = paper(
        0.5, "Chance of a mirrored crop; 0 where mirroring changes meaning.", "code augmentations.py"
    )
    color_jitter: ColorJitter = choice(ColorJitter(), "Colour jitter.")
    grayscale: Probability = paper(0.2, "Chance of a grey crop.", "code augmentations.py")
    blur: Blur = choice(Blur(), "Gaussian blur.")
    solarize: Probability = paper(
        0.2, "Chance to solarize the second global crop (threshold 128).", "code augmentations.py"
    )
    backend: Literal["fast", "exact"] = choice(
        "fast",
        "Who does the pixel work in training. exact: Pillow, the pixels of the released augmentation, several times "
        "slower. fast: libjpeg-turbo and OpenCV, with the same boxes, decisions and order, and pixels that differ by "
        "half a level of 255 on average (bicubic resizing and hue; the rest is equal but for roundings).",
    )
    aspect: PositiveInterval = paper(
        (0.75, 1.3333333333333333), "Width over height of a crop before resizing.", "torchvision default"
    )
    mean: Rgb = paper((0.485, 0.456, 0.406), "Channel means (RGB, 0 to 1).", "ImageNet")
    std: PositiveRgb = paper((0.229, 0.224, 0.225), "Channel deviations (RGB, 0 to 1).", "ImageNet")


class CropSizes(Section):
    """One of several pairs of crop sizes, of which every step draws one for its whole batch (as DINOv3 does at high
    resolution).
    """

    global_size: int = Field(alias="global", description="Side of the global crops in pixels.", ge=4)
    local_size: int | None = derived("Side of the local crops in pixels.", "crops.local.size", alias="local", ge=4)
    weight: float = choice(1.0, "Share of the steps, relative to the other pairs.", gt=0)


class Crops(Section):
    """Multi-crop."""

    global_crops: GlobalCrops = choice(GlobalCrops(), "The two global crops.", alias="global")
    local_crops: LocalCrops = choice(LocalCrops(), "The local crops.", alias="local")
    sizes: list[CropSizes] | None = choice(
        None,
        "Mixed resolutions: pairs of sizes, of which every step draws one. global.size, which is then the largest of "
        "them unless given, stays the size of the positional table and of the exported model. Null: one size.",
        min_length=1,
    )
    augmentation: Augmentation = choice(Augmentation(), "Distortions of a crop.")

    def pairs(self) -> list["Crops"]:
        """These crops once for every pair of sizes, in the order of ``sizes``; themselves where there is one size."""
        return [self.at(pair) for pair in self.sizes or ()] or [self]

    def at(self, pair: CropSizes) -> "Crops":
        """The same crops at one pair of sizes."""
        whole = self.global_crops.model_copy(update={"size": pair.global_size})
        part = self.local_crops.model_copy(update={"size": pair.local_size or self.local_crops.size})
        return self.model_copy(update={"global_crops": whole, "local_crops": part, "sizes": None})
