"""What happens when things break, what must hold before a model counts, and where metrics go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dinoctl.spec.base import Duration, Section, choice, derived, paper
from dinoctl.spec.sources import DataSource


class Retries(Section):
    """Separate budgets, so that a bug does not burn what preemptions need."""

    infrastructure: int = choice(20, "Restarts after lost nodes, killed processes or storage that is down.", ge=0)
    application: int = choice(2, "Restarts after an error in the program.", ge=0)


class CheckpointPolicy(Section):
    """How often, and how many are kept."""

    every_steps: int = paper(3750, "Steps between checkpoints.", "code config", ge=1)
    keep: int = paper(3, "Newest checkpoints kept.", "code config", ge=1)
    keep_every: int | None = choice(
        None, "Steps; checkpoints at multiples of it are kept for good, besides the newest.", ge=1
    )

    @model_validator(mode="after")
    def _multiple(self) -> "CheckpointPolicy":
        if self.keep_every is not None and self.keep_every % self.every_steps:
            nearest = max(round(self.keep_every / self.every_steps), 1) * self.every_steps
            raise ValueError(
                f"keepEvery {self.keep_every} is no multiple of everySteps {self.every_steps}; make it {nearest}"
            )
        return self


class HealthPolicy(Section):
    """What is looked at while a model trains, and when it is too ill to go on (docs/health.md)."""

    every_steps: int = choice(100, "Steps between measurements of the effective rank of the class tokens.", ge=1)
    max_skipped_streak: int = choice(
        2,
        "Steps in a row that may be skipped because loss or gradients are not finite; a longer streak ends the job. "
        "DINOv3 (code) tolerates as many.",
        ge=0,
    )


class Policy(Section):
    """Budgets, checkpoints and health."""

    retries: Retries = choice(Retries(), "Restart budgets.")
    deadline: Duration | None = choice(
        None, "Longest time from start to end over all attempts, without suspended time."
    )
    checkpoint: CheckpointPolicy = choice(CheckpointPolicy(), "Checkpoints.")
    health: HealthPolicy = choice(HealthPolicy(), "Signals of health, and steps that fail.")


class KnnSettings(Section):
    """The k-NN protocol of DINO and DINOv2 (weighted votes of the nearest training images)."""

    k: list[Annotated[int, Field(ge=1)]] = paper(
        [10, 20, 100, 200], "Numbers of neighbours; the best is reported.", "code eval/knn.py", min_length=1
    )
    temperature: float = paper(0.07, "Temperature of the votes.", "code eval/knn.py", gt=0)
    image_size: int | None = derived("Side of the centre crop in pixels.", "the size of the model's global crops", ge=4)
    resize: int | None = derived("Shorter side before the crop, in pixels.", "imageSize * 256 / 224", ge=4)
    batch_size: int = paper(256, "Images of a forward pass.", "code eval/knn.py", ge=1)

    @model_validator(mode="after")
    def _crop_fits(self) -> "KnnSettings":
        if self.resize is not None and self.image_size is not None and self.resize < self.image_size:
            raise ValueError(
                f"resize {self.resize} is smaller than imageSize {self.image_size}; make it at least as large"
            )
        return self


class Promote(Section):
    """Where a model that passed is registered."""

    model: str = Field(description="Name of the registered model.", min_length=1, pattern=r"^[^/:@]+$")
    alias: str = choice(
        "champion",
        "Alias that moves to the new version; the former holder becomes rollback.",
        pattern=r"^[a-z][a-z0-9_-]*$",
    )


class Gate(Section):
    """Evidence that a model must show. Jobs that name this one wait for it."""

    metric: Literal["knn_top1"] = choice("knn_top1", "Metric, measured on the exported model.")
    min: float | None = choice(None, "Least value.", ge=0, le=1)
    above_random: float | None = choice(None, "Least distance to the same backbone untrained.", ge=0, le=1)
    champion_margin: float | None = choice(
        None, "How far below the present champion, measured on the same data, is still good; null: no comparison.", ge=0
    )
    dataset: DataSource = Field(description="Labelled dataset: a URI or {job: NAME}.")
    train_split: str = choice("train", "Split that votes.")
    test_split: str = choice("val", "Split that is measured.")
    knn: KnnSettings = choice(KnnSettings(), "Protocol.")
    promote: Promote | None = choice(None, "Registration after passing; null: none.")

    @model_validator(mode="after")
    def _champion(self) -> "Gate":
        if self.champion_margin is not None and self.promote is None:
            raise ValueError("championMargin compares with the holder of an alias; add promote: {model: NAME}")
        return self
