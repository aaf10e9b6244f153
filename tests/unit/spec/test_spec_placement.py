"""Whether a frozen teacher is whole on every worker: arithmetic, and no part of what a job is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_documents import PRETRAIN, Workshop, document

from dinoctl.spec.compute import Compute, Engine
from dinoctl.spec.placement import fits_whole, keeps_whole

DISTILL = "distill: {teacher: {uri: t}, data: {source: x}, model: {arch: vit_small}, globalBatch: 64"
GIB, MILLION = 2**30, 10**6


def test_vit_g_is_replicated_where_half_a_device_has_room() -> None:
    """1,236.7 M parameters in bf16 are 2.3 GiB, a student of 117.5 M 2.4 GiB over its ranks."""
    vit_g = {"teacher": 1_236_700_000, "student": 117_500_000, "precision": "bf16"}
    assert Compute().device_memory == 40 * GIB
    assert fits_whole(**vit_g, ranks=1, memory=40 * GIB)  # type: ignore[arg-type]
    assert fits_whole(**vit_g, ranks=8, memory=8 * GIB)  # type: ignore[arg-type]
    assert not fits_whole(**vit_g, ranks=1, memory=8 * GIB)  # type: ignore[arg-type]
    assert not fits_whole(**vit_g, ranks=1000, memory=4 * GIB)  # type: ignore[arg-type]
    assert not fits_whole(teacher=7 * 10**9, student=0, ranks=8, precision="fp32", memory=40 * GIB)


def test_the_boundary_is_half_of_the_memory() -> None:
    exactly = {"teacher": 10 * MILLION, "student": 4 * MILLION, "ranks": 2, "precision": "bf16"}
    held = 10 * MILLION * 2 + 4 * MILLION * (20 + 2) // 2
    assert fits_whole(**exactly, memory=2 * held)  # type: ignore[arg-type]
    assert not fits_whole(**exactly, memory=2 * held - 1)  # type: ignore[arg-type]


@given(
    st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.integers(1, 1000),
    st.integers(1, 2**38),
    st.sampled_from(["bf16", "fp32"]),
)
def test_more_room_never_makes_a_teacher_sharded(
    teacher: int, student: int, ranks: int, memory: int, precision: str
) -> None:
    if fits_whole(teacher=teacher, student=student, ranks=ranks, memory=memory, precision=precision):  # type: ignore[arg-type]
        for changed in ({"memory": 2 * memory}, {"ranks": ranks + 1}, {"teacher": teacher // 2}, {"precision": "bf16"}):
            given = {"teacher": teacher, "student": student, "ranks": ranks, "memory": memory, "precision": precision}
            assert fits_whole(**{**given, **changed}), changed  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "whole"),
    [
        ({"name": "ddp"}, True),
        ({"name": "fsdp"}, False),
        ({"name": "deepspeed"}, False),
        ({"name": "deepspeed", "zeroStage": 3}, False),
        ({"name": "deepspeed", "zeroStage": 1}, True),
        ({"name": "deepspeed", "zeroStage": 2}, True),
    ],
)
def test_engines_that_keep_all_parameters_anyway(engine: dict[str, object], whole: bool) -> None:
    assert keeps_whole(Engine.model_validate(engine)) == whole


def test_where_a_teacher_lies_is_no_part_of_what_a_job_is(workshop: Workshop) -> None:
    placed = f"{DISTILL}, teacherPlacement: sharded}}\ncompute: {{deviceMemory: 80GiB}}"
    hashes = {workshop.resolve(document("a", text))["a"].spec_hash for text in (DISTILL + "}", placed)}
    assert len(hashes) == 1


def test_other_stages_have_no_teacher_to_place(workshop: Workshop) -> None:
    (said,) = workshop.problems(document("a", PRETRAIN[:-1] + ", teacherPlacement: sharded}"))
    assert "teacherPlacement" in said
