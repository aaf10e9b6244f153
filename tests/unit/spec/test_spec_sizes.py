"""Mixed resolutions and the options of augmentation in documents."""

import pytest
from spec_documents import Workshop, document

from dinoctl.spec.resolve import spec_hash

HASH_BEFORE = "1eb973228a914a77c49e596755e92c863edc2d5a9de177787abb1c09bc1ab5b3"
PARENT = "pretrain: {data: {source: x}, model: {arch: vit_small}, crops: {augmentation: {blur: {behaviour: %s}}}}"


def crops(workshop: Workshop, text: str) -> dict[str, object]:
    found: dict[str, object] = workshop.spec(f"pretrain: {{data: {{source: x}}, crops: {text}}}")["pretrain"]["crops"]
    return found


def test_pretraining_at_several_sizes(workshop: Workshop) -> None:
    found = crops(workshop, "{sizes: [{global: 224, weight: 3}, {global: 280, local: 112}]}")
    assert found["sizes"] == [
        {"global": 224, "local": 126, "weight": 3.0},  # 7/16 of the largest, in whole patches
        {"global": 280, "local": 112, "weight": 1.0},
    ]
    assert found["global"]["size"] == 280  # type: ignore[index]
    given = crops(workshop, "{global: {size: 224}, sizes: [{global: 224}, {global: 280}]}")
    assert given["global"]["size"] == 224  # type: ignore[index]
    assert [pair["local"] for pair in given["sizes"]] == [98, 98]  # type: ignore[attr-defined]


def test_high_resolution_at_several_sizes(workshop: Workshop) -> None:
    parent = document("p", PARENT % "released")
    stage = "highres: {from: {job: p}, sizes: [{global: 518, local: 112, weight: 0.3}, {global: 770}]}"
    spec = workshop.resolve(parent, document("a", stage))["a"].to_dict()["spec"]["highres"]
    assert (spec["size"], spec["localSize"]) == (770, 98)
    assert spec["sizes"] == spec["crops"]["sizes"]
    assert [(pair["global"], pair["local"]) for pair in spec["sizes"]] == [(518, 112), (770, 98)]
    plain = workshop.resolve(parent, document("a", "highres: {from: {job: p}}"))["a"]
    assert "sizes" not in plain.to_dict()["spec"]["highres"]["crops"]


def test_a_parents_sizes_are_its_own(workshop: Workshop) -> None:
    parent = "pretrain: {data: {source: x}, model: {arch: vit_small}, crops: {sizes: [{global: 224}, {global: 280}]}}"
    spec = workshop.resolve(document("p", parent), document("a", "highres: {from: {job: p}}"))["a"].spec
    assert spec.highres
    assert spec.highres.crops
    assert spec.highres.crops.sizes is None
    assert spec.highres.crops.global_crops.size == 518


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            "sizes: [{global: 518}, {global: 512}]",
            "spec.highres.sizes[1].global: 512 is not a multiple of patchSize 14",
        ),
        ("sizes: [{global: 518, local: 100}]", "spec.highres.sizes[0].local: 100 is not a multiple of patchSize 14"),
        ("sizes: []", "spec.highres.sizes: must be a list of at least 1"),
        ("sizes: [{global: 518, weight: 0}]", "spec.highres.sizes[0].weight: must be above 0"),
        ("sizes: [{local: 98}]", "spec.highres.sizes[0].global: required field is missing"),
        ("crops: {sizes: [{global: 518}]}", "spec.highres.crops.sizes: differ from highres.sizes; set highres.sizes"),
    ],
)
def test_sizes_that_cannot_be(workshop: Workshop, stage: str, said: str) -> None:
    lines = workshop.problems(
        document("p", PARENT % "released"), document("a", f"highres:\n  from: {{job: p}}\n  {stage}")
    )
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_blur_by_behaviour(workshop: Workshop) -> None:
    def blur(text: str) -> list[float]:
        found = crops(workshop, f"{{augmentation: {{blur: {text}}}}}")["augmentation"]["blur"]  # type: ignore[index]
        return [found[name] for name in ("firstGlobal", "secondGlobal", "local")]

    assert blur("{}") == blur("{behaviour: released}") == [0.0, 0.9, 0.5]
    assert blur("{behaviour: intended}") == [1.0, 0.1, 0.5]
    assert blur("{behaviour: intended, local: 0.3}") == [1.0, 0.1, 0.3]


def test_blur_of_a_parent_and_of_the_stage(workshop: Workshop) -> None:
    def first(parent: str, stage: str) -> float:
        blur = f"{{augmentation: {{blur: {stage}}}}}"
        text = f"highres: {{from: {{job: p}}, crops: {blur}}}"
        spec = workshop.resolve(document("p", PARENT % parent), document("a", text))["a"].spec
        assert spec.highres
        assert spec.highres.crops
        return spec.highres.crops.augmentation.blur.chances()[0]

    assert first("intended", "{}") == first("released", "{behaviour: intended}") == 1.0
    assert first("released", "{}") == first("intended", "{behaviour: released}") == 0.0
    assert first("released", "{firstGlobal: 0.25}") == 0.25


def test_the_order_of_distortions(workshop: Workshop) -> None:
    order = "[colorJitter, grayscale, horizontalFlip, solarize, blur]"
    found = crops(workshop, f"{{augmentation: {{order: {order}}}}}")["augmentation"]
    assert found["order"] == ["colorJitter", "grayscale", "horizontalFlip", "solarize", "blur"]  # type: ignore[index]
    for wrong in ("[blur]", "[blur, blur, horizontalFlip, colorJitter, grayscale, solarize]"):
        (line,) = workshop.problems(
            document("a", f"pretrain: {{data: {{source: x}}, crops: {{augmentation: {{order: {wrong}}}}}}}")
        )
        assert "name each of horizontalFlip, colorJitter, grayscale, blur, solarize exactly once" in line


def test_options_left_alone_leave_the_hash_alone(workshop: Workshop) -> None:
    """Hashes of documents that were made before these options came, when the exact backend was the only one."""
    base = "pretrain: {data: {source: x}"
    released = (
        "crops: {augmentation: {backend: exact, order: [horizontalFlip, colorJitter, grayscale, blur, solarize]}}"
    )

    def digest(text: str) -> str:
        return spec_hash(workshop.resolve(document("a", text))["a"].spec, {})

    plain = digest(base + ", crops: {augmentation: {backend: exact}}}")
    assert plain == HASH_BEFORE
    assert digest(base + "}") == digest(base + ", crops: {augmentation: {backend: fast}}}") != plain
    assert digest(f"{base}, {released}}}") == plain
    assert digest(f"{base}, crops: {{augmentation: {{backend: exact, blur: {{behaviour: released}}}}}}}}") == plain
    assert digest(f"{base}, crops: {{augmentation: {{backend: exact, blur: {{behaviour: intended}}}}}}}}") != plain
    other = released.replace("blur, solarize", "solarize, blur")
    assert digest(f"{base}, {other}}}") != plain
    assert digest(f"{base}, crops: {{sizes: [{{global: 224}}, {{global: 238}}]}}}}") != plain
