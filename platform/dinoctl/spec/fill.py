"""Filling in derived fields, and remembering by which rule each one was filled."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

from dinoctl.spec.base import Section
from dinoctl.spec.crops import Crops, CropSizes
from dinoctl.spec.model import ModelSpec
from dinoctl.spec.policy import KnnSettings
from dinoctl.spec.recipe import Gram, Losses, Schedules
from dinoctl.spec.yamldoc import Path

S = TypeVar("S", bound=Section)
T = TypeVar("T", bound=Schedules)


def yaml_name(section: type[Section] | Section, attribute: str) -> str:
    """The YAML name of a Python attribute."""
    model = section if isinstance(section, type) else type(section)
    return model.model_fields[attribute].alias or attribute


@dataclass
class Filler:
    """Fills fields that are None and keeps ``notes``: path -> the rule that gave the value."""

    notes: dict[Path, str] = field(default_factory=dict)

    def fill(self, section: S, path: Path, rule: str | None = None, **values: Any) -> S:
        """``section`` with those of ``values`` that it leaves open; ``rule`` or the field's own rule is noted."""
        update: dict[str, Any] = {}
        for name, value in values.items():
            if getattr(section, name) is None and value is not None:
                update[name] = value
                self.notes[(*path, yaml_name(section, name))] = rule or _rule(section, name)
        return section.model_copy(update=update)

    def inherit(self, given: S | None, parent: S | None, path: Path, rule: str) -> S | None:
        """What ``given`` leaves open is ``parent``'s, field by field; ``rule`` is noted for those."""
        if given is None or parent is None:
            if parent is not None:
                self.notes[path] = rule
            return parent if given is None else given
        update: dict[str, Any] = {}
        for name in type(given).model_fields:
            mine, theirs, where = getattr(given, name), getattr(parent, name), (*path, yaml_name(given, name))
            if name not in given.model_fields_set or (mine is None and theirs is not None and _is_derived(given, name)):
                update[name] = theirs
                self.notes[where] = rule
            elif isinstance(mine, Section) and isinstance(theirs, Section):
                update[name] = self.inherit(mine, theirs, where, rule)
        return given.model_copy(update=update)

    def model(self, model: ModelSpec, path: Path, *, drop_path: float) -> ModelSpec:
        """Every derived field of a backbone."""
        full = model.resolved(drop_path=drop_path)
        names = ("embed_dim", "depth", "num_heads", "ffn", "drop_path", "position_interpolation")
        return self.fill(model, path, **{name: getattr(full, name) for name in names})

    def crops(self, crops: Crops, path: Path, *, patch_size: int) -> Crops:
        """The local crop size: 7/16 of the global one in whole patches (98 of 224 at patch 14, 96 at patch 16)."""
        whole = crops.global_crops
        if crops.sizes and "size" not in whole.model_fields_set:
            whole = whole.model_copy(update={"size": max(pair.global_size for pair in crops.sizes)})
            self.notes[(*path, "global", "size")] = "largest of crops.sizes"
        patches = max(1, round(whole.size * 7 / 16 / patch_size))
        local = self.fill(crops.local_crops, (*path, "local"), size=patches * patch_size)
        filled = crops.model_copy(update={"global_crops": whole, "local_crops": local})
        return self.blur(filled.model_copy(update={"sizes": self.sizes(crops.sizes, local.size)}), path)

    @staticmethod
    def sizes(sizes: list[CropSizes] | None, local: int | None) -> list[CropSizes] | None:
        """Pairs of sizes, each with a local one."""
        return sizes and [pair.model_copy(update={"local_size": pair.local_size or local}) for pair in sizes]

    def blur(self, crops: Crops, path: Path) -> Crops:
        """The chances of blur as its behaviour has them."""
        augmentation, blur = crops.augmentation, crops.augmentation.blur
        first, second, local = blur.chances()
        where = (*path, "augmentation", "blur")
        blur = self.fill(
            blur, where, f"behaviour {blur.behaviour}", first_global=first, second_global=second, local=local
        )
        return crops.model_copy(update={"augmentation": augmentation.model_copy(update={"blur": blur})})

    def schedules(self, schedules: T, path: Path, *, steps: int) -> T:
        """Warm-up lengths as the paper's shares of ``steps``."""
        rate = self.fill(schedules.learning_rate, (*path, "learningRate"), warmup_steps=round(steps * 80 / 500))
        heat = self.fill(
            schedules.teacher_temperature, (*path, "teacherTemperature"), warmup_steps=round(steps * 30 / 500)
        )
        filled = self.fill(schedules, path, freeze_last_layer_steps=round(steps / 500))
        return filled.model_copy(update={"learning_rate": rate, "teacher_temperature": heat})

    def losses(self, losses: Losses, path: Path, *, steps: int, anchored: bool = False) -> Losses:
        """When Gram anchoring begins and how its teacher is renewed; ``anchored``: by a parent, from the first step."""
        if losses.gram is None:
            return losses
        gram = self.fill(
            losses.gram,
            (*path, "gram"),
            start_step=0 if anchored else round(steps * 5 / 6),
            warmup_steps=0 if anchored else round(steps / 1200),
            refresh_every=max(1, round(steps / 120)),
            max_refreshes=0 if anchored else 3,
        )
        return losses.model_copy(update={"gram": gram})

    def knn(self, knn: KnnSettings, path: Path, *, image_size: int | None) -> KnnSettings:
        """Image sizes of an evaluation."""
        sized = self.fill(knn, path, image_size=image_size)
        if sized.image_size is None:
            return sized
        return self.fill(sized, path, resize=round(sized.image_size * 256 / 224))


def compress(schedules: Schedules, *, steps: int, parent_steps: int, factor: float) -> Schedules:
    """A parent's schedules in ``steps`` steps, with ``factor`` on the learning rate (paper App. B.2)."""
    share = steps / parent_steps
    rate, heat = schedules.learning_rate, schedules.teacher_temperature
    return schedules.model_copy(
        update={
            "learning_rate": rate.model_copy(
                update={"base": rate.base * factor, "warmup_steps": round((rate.warmup_steps or 0) * share)}
            ),
            "teacher_temperature": heat.model_copy(update={"warmup_steps": round((heat.warmup_steps or 0) * share)}),
            "freeze_last_layer_steps": round((schedules.freeze_last_layer_steps or 0) * share),
        }
    )


def without_lengths(losses: Losses) -> Losses:
    """A parent's losses without the steps of its Gram anchoring, which count in a run of its own length."""
    if losses.gram is None:
        return losses
    return losses.model_copy(update={"gram": Gram(weight=losses.gram.weight, teacher_scale=losses.gram.teacher_scale)})


def _is_derived(section: Section, name: str) -> bool:
    extra = type(section).model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("derived"))


def _rule(section: Section, name: str) -> str:
    extra = type(section).model_fields[name].json_schema_extra
    return str(extra["source"]) if isinstance(extra, dict) else "derived"
