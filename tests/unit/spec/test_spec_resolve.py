"""Resolution: pure, reproducible, every value with an origin; inheritance, derived values, pins."""

import itertools
import json

import pytest
from spec_documents import PRETRAIN, Workshop, document

from dinoctl.cli.render import resolved_yaml
from dinoctl.spec.base import parse_bytes, parse_duration
from dinoctl.spec.crops import Crops, GlobalCrops
from dinoctl.spec.fill import Filler
from dinoctl.spec.job import JobSpec, references
from dinoctl.spec.pin import pin
from dinoctl.spec.sources import JobRef

PACK = document("data", "pack: {source: builtin://digits}")
TEACHER = document("teacher", "pretrain: {data: {source: {job: data}}}")
STUDENT = document(
    "student", "distill: {teacher: {job: teacher}, data: {source: {job: data}}, model: {arch: vit_small}}"
)


def test_the_same_documents_always_resolve_to_the_same_bytes(workshop: Workshop) -> None:
    texts = [PACK, TEACHER, STUDENT, document("big", "highres: {from: {job: teacher}}")]
    seen = set()
    for order in itertools.permutations(texts):
        jobs = workshop.resolve(*order)
        seen.add(json.dumps({name: [jobs[name].to_dict(), jobs[name].spec_hash] for name in sorted(jobs)}))
    assert len(seen) == 1


def test_the_way_of_writing_changes_nothing(workshop: Workshop) -> None:
    short = workshop.resolve(document("a", "pretrain: {data: {source: x}, globalBatch: 64}"))["a"]
    long = workshop.resolve(
        document(
            "a", "seed: 0\ncompute: {}\npretrain:\n  globalBatch: 0x40\n  steps: 625000\n  data:\n    source: 'x'\n"
        )
    )["a"]
    assert short.to_dict() == long.to_dict()
    assert short.spec_hash == long.spec_hash


BASE = "pretrain: {data: {source: x}, globalBatch: 64}\ngate: {dataset: y}"


def test_options_that_are_off_leave_the_hash_as_it_was_without_them(workshop: Workshop) -> None:
    off = "64, model: {rope: null, untieNorms: null}, losses: {gram: null, koleoGroup: null}}"
    hashes = [workshop.resolve(document("a", text))["a"].spec_hash for text in (BASE, BASE.replace("64}", off))]
    assert hashes[0] == hashes[1]


def test_a_scale_of_one_leaves_the_hash_of_gram_anchoring_as_it_was(workshop: Workshop) -> None:
    plain = BASE.replace("64}", "64, losses: {gram: {}}}")
    texts = [plain, *(plain.replace("gram: {}", f"gram: {{teacherScale: {scale}}}") for scale in (1.0, 2.0))]
    hashes = [workshop.resolve(document("a", text))["a"].spec_hash for text in texts]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    "spec",
    [
        BASE.replace("64}", "64, model: {rope: {}}}"),
        BASE.replace("64}", "64, model: {untieNorms: local_cls}}"),
        BASE.replace("64}", "64, losses: {koleoGroup: 16}}"),
        BASE.replace("64}", "64, losses: {gram: {}}}"),
        BASE.replace("64", "128"),
        BASE.replace("source: x", "source: z"),
        BASE.replace("dataset: y", "dataset: z"),
        BASE.replace("64}", "64, heads: {ibot: null}}"),
        BASE.replace("64}", "64, model: {layerScale: null}}"),
        BASE.replace("64}", "64, crops: {augmentation: {mean: [0.5, 0.5, 0.5]}}}"),
        f"{BASE}\nseed: 1",
        f"{BASE}\ncompute: {{precision: fp32}}",
    ],
)
def test_the_hash_changes_with_what_decides_the_result(workshop: Workshop, spec: str) -> None:
    hashes = {workshop.resolve(document("a", text))["a"].spec_hash for text in (BASE, spec)}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "spec",
    [
        f"{BASE}\ncompute: {{workers: 4, gpusPerWorker: 0, cpusPerWorker: 3, loaderWorkers: 1, engine: {{name: ddp}}}}",
        BASE.replace("{source: x}", "{source: x, reader: {requestsPerSecond: 7, cache: {path: /c, bytes: 1GB}}}"),
        f"{BASE}\npolicy: {{deadline: 3d, retries: {{application: 9}}, checkpoint: {{everySteps: 7}}}}",
        f"{BASE}\nsuspend: true",
        f"{BASE}\nprofile: big\nstorage: s3://b/p",
        BASE.replace("64}", "64, logEvery: 1}"),
        BASE.replace("dataset: y", "dataset: y, knn: {batchSize: 8}"),
    ],
)
def test_the_hash_does_not_change_with_how_a_job_is_run(workshop: Workshop, spec: str) -> None:
    hashes = {workshop.resolve(document("a", text))["a"].spec_hash for text in (BASE, spec)}
    assert len(hashes) == 1


def test_a_parent_that_changes_changes_the_hash_of_its_children(workshop: Workshop) -> None:
    before = workshop.resolve(PACK, TEACHER, STUDENT)
    after = workshop.resolve(PACK.replace("source:", "verify: false, source:"), TEACHER, STUDENT)
    assert all(before[name].spec_hash != after[name].spec_hash for name in before)
    assert before["student"].to_dict() == after["student"].to_dict()


def test_parents_and_labels(workshop: Workshop) -> None:
    labelled = document("a", PRETRAIN).replace("name: a", "name: a, labels: {team: vision}")
    jobs = workshop.resolve(PACK, TEACHER, STUDENT, labelled)
    assert jobs["student"].parents == ("data", "teacher")
    assert jobs["a"].to_dict()["metadata"] == {"name": "a", "labels": {"team": "vision"}}


NULLS = """
pretrain:
  data: {source: x}
  globalBatch: 64
  model: {arch: vit_small, layerScale: null}
  heads: {ibot: null}
policy: {deadline: 30d}
compute: {engine: {name: ddp}}
"""


def test_a_resolved_document_reads_back_as_itself(workshop: Workshop) -> None:
    job = workshop.resolve(document("a", NULLS))["a"]
    again = JobSpec.model_validate(json.loads(json.dumps(job.to_dict()["spec"])), by_alias=True, by_name=False)
    assert again == job.spec
    assert (again.pretrain and again.pretrain.heads.ibot, again.policy.deadline) == (None, 2592000)
    for origins in (False, True):
        text = resolved_yaml(job, origins=origins)
        back = workshop.resolve(text)["a"]
        assert (back.to_dict(), back.spec_hash) == (job.to_dict(), job.spec_hash)


def test_origins_say_file_and_line_rule_or_source(workshop: Workshop) -> None:
    origins = workshop.resolve(document("a", NULLS))["a"].origins
    assert origins["spec.pretrain.globalBatch"].endswith("job.yaml:7")
    assert origins["spec.pretrain.heads.ibot"].endswith("job.yaml:9")
    assert origins["spec.pretrain.steps"] == "default: paper Table 16"
    assert origins["spec.pretrain.model.depth"] == "derived: of the architecture"
    assert origins["spec.pretrain.schedules.learningRate.warmupSteps"].startswith("derived: 16 % of steps")
    assert origins["spec.compute.workers"] == "default: dinoctl"


# Derived values


@pytest.mark.parametrize(
    ("size", "patch", "local"), [(224, 14, 98), (224, 16, 96), (16, 4, 8), (32, 4, 16), (28, 14, 14), (14, 14, 14)]
)
def test_local_crops_are_seven_sixteenths_of_the_global_ones(size: int, patch: int, local: int) -> None:
    crops = Filler().crops(Crops(global_crops=GlobalCrops(size=size)), (), patch_size=patch)
    assert crops.local_crops.size == local


@pytest.mark.parametrize("steps", [1, 10, 499, 500, 12345, 625000])
def test_warm_ups_are_shares_of_the_steps_and_never_longer(workshop: Workshop, steps: int) -> None:
    schedules = workshop.spec(f"pretrain: {{data: {{source: x}}, steps: {steps}}}")["pretrain"]["schedules"]
    assert schedules["learningRate"]["warmupSteps"] == round(steps * 0.16) <= steps
    assert schedules["teacherTemperature"]["warmupSteps"] == round(steps * 0.06)
    assert schedules["freezeLastLayerSteps"] == round(steps * 0.002)


def test_what_is_written_is_never_replaced(workshop: Workshop) -> None:
    spec = """
    pretrain:
      data: {source: x}
      model: {arch: vit_large, ffn: swiglu, dropPath: 0, positionInterpolation: antialias}
      crops: {local: {size: 70}}
      schedules: {learningRate: {warmupSteps: 0}, teacherTemperature: {warmupSteps: 0}, freezeLastLayerSteps: 0}
    gate: {dataset: y, knn: {imageSize: 196, resize: 200}}
    """
    found = workshop.spec(spec)
    stage = found["pretrain"]
    assert stage["model"]["ffn"] == "swiglu"
    assert stage["model"]["dropPath"] == 0
    assert stage["model"]["positionInterpolation"] == "antialias"
    assert stage["crops"]["local"]["size"] == 70
    assert stage["schedules"]["learningRate"]["warmupSteps"] == 0
    assert stage["schedules"]["teacherTemperature"]["warmupSteps"] == 0
    assert stage["schedules"]["freezeLastLayerSteps"] == 0
    assert found["gate"]["knn"]["resize"] == 200


def test_registers_decide_the_interpolation(workshop: Workshop) -> None:
    def kind(model: str) -> str:
        return str(
            workshop.spec(f"pretrain: {{data: {{source: x}}, model: {model}}}")["pretrain"]["model"][
                "positionInterpolation"
            ]
        )

    assert (kind("{registers: 4}"), kind("{}")) == ("antialias", "offset")


def test_an_evaluation_is_at_the_size_of_its_model_if_that_is_known(workshop: Workshop) -> None:
    knn = "protocols: {knn: {dataset: {job: data}}}"
    small = document("teacher", "pretrain: {data: {source: {job: data}}, crops: {global: {size: 112}}}")
    known = workshop.resolve(PACK, small, document("a", f"evaluate: {{model: {{job: teacher}}, {knn}}}"))["a"]
    assert known.to_dict()["spec"]["evaluate"]["protocols"]["knn"]["imageSize"] == 112
    assert known.to_dict()["spec"]["evaluate"]["protocols"]["knn"]["resize"] == 128
    unknown = workshop.resolve(PACK, document("a", f"evaluate: {{model: {{uri: x}}, {knn}}}"))["a"]
    assert "imageSize" not in unknown.to_dict()["spec"]["evaluate"]["protocols"]["knn"]


# Pins


def test_pinning_replaces_every_reference_by_the_place_of_the_output(workshop: Workshop) -> None:
    mixed = "pretrain: {data: {mixture: [{source: {job: data}, weight: 2}, {source: x}]}}\ngate: {dataset: {job: data}}"
    jobs = workshop.resolve(PACK, TEACHER, STUDENT, document("mixed", mixed))
    places = {"data": "s3://b/data", "teacher": "/runs/teacher"}
    student = pin(jobs["student"].spec, places)
    assert references(student) == []
    plain = student.model_dump(mode="json")["distill"]
    assert plain["teacher"] == {"uri": "/runs/teacher"}
    assert plain["data"]["source"] == "s3://b/data/dataset"
    pinned = pin(jobs["mixed"].spec, places).model_dump(mode="json")
    assert [part["source"] for part in pinned["pretrain"]["data"]["mixture"]] == ["s3://b/data/dataset", "x"]
    assert pinned["gate"]["dataset"] == "s3://b/data/dataset"


def test_what_has_no_place_yet_stays_a_reference(workshop: Workshop) -> None:
    spec = workshop.resolve(PACK, TEACHER)["teacher"].spec
    assert pin(spec, {}) == spec
    assert references(spec) == [(("pretrain", "data", "source", "job"), "data")]
    assert spec.pretrain is not None
    assert isinstance(spec.pretrain.data.source, JobRef)


# Units


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000), ("1h30m", 5400), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float, workshop: Workshop) -> None:
    assert parse_duration(text) == seconds
    job = workshop.resolve(document("a", f"{PRETRAIN}\npolicy: {{deadline: {text}}}"))["a"]
    assert parse_duration(job.to_dict()["spec"]["policy"]["deadline"]) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 weeks", "h", "-5s", "1e3s", "5s!"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("256MiB", 2**28), ("64MB", 64_000_000), ("1GiB", 2**30), ("1.5 kib", 1536), ("4096", 4096)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_names_that_users_choose_are_no_fields(workshop: Workshop) -> None:
    """A split or a student may be called like a field that decides nothing."""

    def hash_of(count: int) -> str:
        text = f"pack: {{source: /images, splits: {{workers: {count}, behaviour: 3}}}}"
        return workshop.resolve(document("a", text))["a"].spec_hash

    assert hash_of(5) != hash_of(7)
