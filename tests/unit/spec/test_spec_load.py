"""Files to jobs, and what is said of bad ones."""

import io
import sys
from pathlib import Path

import pytest
from spec_documents import HEADER, PRETRAIN, Workshop, document

from dinoctl.spec.errors import redacted
from dinoctl.spec.load import load

PLAIN = document("a", PRETRAIN)


def whole(spec: str) -> str:
    """``~`` stands for a pretraining with data, ``@`` for the model of an evaluation."""
    if spec.startswith("~"):
        return f"pretrain: {{data: {{source: x}}, {spec[1:]}}}"
    return f"evaluate: {{model: {spec[1:]}, protocols: {{knn: {{dataset: x}}}}}}" if spec.startswith("@") else spec


def line_of(workshop: Workshop, spec: str) -> str:
    (line,) = workshop.problems(document("a", spec))
    return line


def test_files_and_directories_and_many_documents(workshop: Workshop) -> None:
    workshop.write(PLAIN + "---\n" + document("b", PRETRAIN), "one.yaml")
    workshop.write(document("c", PRETRAIN), "two.yml")
    workshop.write("not read", "readme.txt")
    assert [job.name for job in load([str(workshop.folder)])] == ["a", "b", "c"]


def test_a_file_named_twice_is_read_once(workshop: Workshop) -> None:
    path = workshop.write(PLAIN)
    link = workshop.folder / "link.yaml"
    link.symlink_to(path)
    assert len(load([str(path), str(workshop.folder), str(path), str(link)])) == 1


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PLAIN.encode())))
    (job,) = load(["-"])
    assert (job.name, job.doc.file) == ("a", "<stdin>")


def test_windows_files_have_the_same_lines(workshop: Workshop) -> None:
    text = document("a", "pretrain: {data: {source: s3://b/d}}\nseeed: 1")
    assert workshop.told_of([workshop.write(text.replace("\n", "\r\n"))])[0].startswith("job.yaml:6:3: spec.seeed:")


def test_all_mistakes_of_all_files_are_told_at_once_in_order(workshop: Workshop) -> None:
    first = workshop.write(document("a", "pretrain: {data: {source: s3://b/d}, steps: 0}\nseeed: 1"), "1.yaml")
    second = workshop.write(document("b", "evaluate: {}") + "---\nkind: DinoJbo\n", "2.yaml")
    third = workshop.write("a: [", "3.yaml")
    missing = workshop.folder / "4.yaml"
    assert workshop.told_of([third, second, missing, first]) == [
        "1.yaml:5:40: spec.pretrain.steps: must be at least 1, not 0",
        "1.yaml:6:3: spec.seeed: unknown field; did you mean 'seed'?",
        "2.yaml:5:3: spec.evaluate.model: required field is missing",
        "2.yaml:5:3: spec.evaluate.protocols: required field is missing",
        "2.yaml:7:1: apiVersion: required field is missing",
        "2.yaml:7:1: kind: must be DinoJob, not 'DinoJbo'",
        "2.yaml:7:1: metadata: required field is missing",
        "2.yaml:7:1: spec: required field is missing",
        "3.yaml:1:5: not valid YAML: expected the node content, but found '<stream end>'",
        "4.yaml: cannot be read: No such file or directory",
    ]


def test_what_cannot_be_read_is_said(workshop: Workshop) -> None:
    empty = workshop.folder / "empty"
    empty.mkdir()
    latin = workshop.write(b"a: 1\nb: \xe4\n", "latin.yaml")
    assert workshop.told_of([empty, latin, "no/such.yaml"]) == [
        "empty: no *.yaml files in this directory",
        "latin.yaml:2:4: not UTF-8 text; save the file as UTF-8",
        "no/such.yaml: cannot be read: No such file or directory",
    ]


def test_a_directory_named_like_a_file_is_said(workshop: Workshop) -> None:
    (workshop.folder / "x.yaml").mkdir()
    assert workshop.told_of([workshop.folder]) == ["x.yaml: cannot be read: Is a directory"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n"])
def test_files_without_documents_are_said(workshop: Workshop, text: str) -> None:
    (line,) = workshop.told_of([workshop.write(text)])
    assert line.startswith("job.yaml: no DinoJob documents found; a document starts with")


@pytest.mark.parametrize("text", ["- 1\n", "text\n", "5\n"])
def test_a_document_must_be_a_mapping(workshop: Workshop, text: str) -> None:
    (line,) = workshop.told_of([workshop.write(text)])
    assert line.startswith("job.yaml:1:1: must be a mapping with apiVersion: dinoctl.io/v1alpha1")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        # unknown fields, at every depth
        ("pretain: {}", "5:3: spec.pretain: unknown field; did you mean 'pretrain'?"),
        ("pretrain: {data: {sorce: s3://b/d}}", "spec.pretrain.data.sorce: unknown field; did you mean 'source'?"),
        ("~global_batch: 8", "unknown field; did you mean 'globalBatch'?"),
        ("~crops: {lokal: {}}", "crops.lokal: unknown field; did you mean 'local'?"),
        ("pretrain: {data: {source: {jbo: x}}}", "source.jbo: unknown field; did you mean 'job'?"),
        ("pretrain: {data: {mixture: [{source: x, wieght: 2}]}}", "mixture[0].wieght: unknown field; did you mean"),
        ("highres: {form: {job: x}}", "spec.highres.form: unknown field; did you mean 'from'?"),
        ("pack: {source: x, zzz: 1}", "spec.pack.zzz: unknown field; known here: format, maxBadRate, shardSize"),
        # enumerations
        ("~model: {arch: vit_gaint2}", "custom, not 'vit_gaint2'; did you mean 'vit_giant2'?"),
        ("~losses: {centering: 3}", "must be one of sinkhorn_knopp, softmax, not 3"),
        (
            "compute: {engine: {name: deepsped}}",
            "must be one of deepspeed, fsdp, ddp, not 'deepsped'; did you mean 'deepspeed'?",
        ),
        ("compute: {gpusPerWorker: 2}", "must be one of 0, 1, not 2"),
        ("compute: {engine: {zeroStage: 4}}", "must be one of 1, 2, 3, not 4"),
        # types
        ("~steps: many", "spec.pretrain.steps: must be a whole number, not 'many'"),
        ("~steps: '10'", "must be a whole number, not '10'; remove the quotes"),
        ("~steps: 1.5", "must be a whole number, not 1.5"),
        ("~steps: true", "must be a whole number, not true"),
        ("~steps: ", "must be a whole number, not empty"),
        ("~optimizer: {eps: '1e-8'}", "must be a number, not '1e-8'"),
        ("~optimizer: {eps: .nan}", "must be"),
        ("~optimizer: {eps: .inf}", "must be a finite number, not inf"),
        ("suspend: yes", "must be true or false, not 'yes'; write true"),
        ("profile: 8", "spec.profile: must be text, not 8; put it in quotes"),
        ("pretrain: [1]", "spec.pretrain: must be a mapping (field: value), not [1]"),
        ("compute: 8", "spec.compute: must be a mapping (field: value), not 8"),
        ("~crops: {local: {scale: 0.3}}", "scale: must be a list, for example [1, 2], not 0.3"),
        ("~crops: {local: {scale: [0.3]}}", "scale[1]: required field is missing"),
        ("pack: {source: x, splits: 500}", "spec.pack.splits: must be a mapping (name: value), not 500"),
        ("pack: {source: x, splits: {val: x}}", "spec.pack.splits.val: must be a whole number, not 'x'"),
        # ranges
        ("~model: {dropPath: 1}", "must be below 1, not 1"),
        ("~losses: {koleo: -1}", "must be at least 0, not -1"),
        ("~masks: {probability: 1.5}", "must be at most 1"),
        ("~crops: {local: {scale: [0, 1]}}", "scale[0]: must be above 0"),
        ("~crops: {local: {scale: [0.5, 0.1]}}", "the first number must not exceed the second"),
        ("~optimizer: {betas: [0.9, 1]}", "betas[1]: must be below 1"),
        ("~crops: {augmentation: {std: [0, 1, 1]}}", "std[0]: must be above 0"),
        ("~schedules: {momentum: {start: 1, end: 2}}", "start and end are at most 1"),
        ("evaluate: {model: {uri: x}, protocols: {knn: {dataset: x, k: []}}}", "knn.k: must be a list of at least 1"),
        ("evaluate: {model: {uri: x}, protocols: {knn: {dataset: x, k: [0]}}}", "knn.k[0]: must be at least 1, not 0"),
        ("policy: {deadline: 3 weeks}", "'3 weeks' is not a duration; write for example 90s, 15m, 12h or 30d"),
        ("policy: {deadline: 0}", "spec.policy.deadline: must be above 0, not 0"),
        ("pack: {source: x, shardSize: 5XB}", "'5XB' is not a size; write for example 256MiB or 1GB"),
        (f"pack: {{source: x, shardSize: {'9' * 400}.0GB}}", "is too large a size"),
        # references
        ("@'models:/a@b'", "write {model: models:/a@b}"),
        ("@s3://b/m", "must be a mapping; write {uri: s3://b/m}"),
        ("@teacher", "must be a mapping; write {job: teacher}"),
        ("@5.5", "must be"),
        ("@[x]", "must be {job: NAME}, {model: models:/NAME@ALIAS}"),
        ("@{model: a}", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("pretrain: {data: {source: [x]}}", "must be a URI, a path or {job: NAME}, not ['x']"),
        ("pretrain: {data: {source: 's3:bucket'}}", "is not a URI or a path; write s3://bucket/prefix"),
        ("pretrain: {data: {source: {job: Big_Name}}}", "'Big_Name' is not a job name; use lower-case letters"),
        ("pretrain: {data: {}}", "spec.pretrain.data: give exactly one of source and mixture"),
        # rules
        ("seed: 1", "4:1: spec: give exactly one of pack, pretrain, highres, distill, evaluate; found none"),
        ("pack: {source: x}\ngate: {dataset: x}", "a gate measures a trained model; pack has none"),
        ("pretrain: {data: {source: x}}\ngate: {dataset: x, championMargin: 0}", "add promote: {model: NAME}"),
        ("~model: {arch: custom}", "arch custom needs embedDim, depth, numHeads"),
        ("~model: {arch: vit_base, depth: 18}", "depth 18 needs arch: custom"),
        ("compute: {engine: {name: ddp, zeroStage: 3}}", "engine ddp has no zeroStage; leave it out"),
        ("pack: {source: x, splits: {train: 5}}", "held-out splits need a count of at least 1 and another name"),
        ("~crops: {augmentation: {blur: {kernel: 8}}}", "kernel must be odd, got 8"),
        ("evaluate: {model: {uri: x}, protocols: {}}", "name at least one protocol: knn"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(workshop: Workshop, spec: str, said: str) -> None:
    lines = workshop.problems(document("a", whole(spec)))
    assert any(said in line for line in lines), lines
    assert all(line.startswith("job.yaml:") and line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["A", "-a", "a-", "a_b", "a.b", "", "x" * 39, "'a\\n'", '"a\\n"'])
def test_job_names(workshop: Workshop, name: str) -> None:
    text = f"{HEADER}metadata: {{name: {name}}}\nspec: {{{PRETRAIN}}}\n"
    assert len(workshop.told_of([workshop.write(text)])) == 1


def test_a_stage_beside_spec_is_named(workshop: Workshop) -> None:
    lines = workshop.told_of([workshop.write(f"{HEADER}metadata: {{name: a}}\n{PRETRAIN}\n")])
    assert any("spec: required field is missing; put pretrain below spec" in line for line in lines)


def test_a_long_value_is_shown_short(workshop: Workshop) -> None:
    line = line_of(workshop, f"seed: {'x' * 500}")
    assert len(line) < 150


def test_text_with_line_breaks_stays_one_line(workshop: Workshop) -> None:
    assert line_of(workshop, 'pack: {source: x, "a\\nb": 1}').startswith(
        "job.yaml:5:21: spec.pack.'a\\nb': unknown field"
    )


def test_references_are_not_judged_while_a_document_is_broken(workshop: Workshop) -> None:
    broken = document("b", "pack: {source: x, workers: 0}")
    lines = workshop.problems(document("a", "pretrain: {data: {source: {job: b}}}"), broken)
    assert lines == ["job.yaml:11:21: spec.pack.workers: must be at least 1, not 0"]


def test_no_arguments(tmp_path: Path, workshop: Workshop) -> None:
    assert "no DinoJob documents found" in workshop.told_of([])[0]


def test_no_password_of_a_url_is_told() -> None:
    assert redacted("MLflow at http://user:hunter2@host:9/x failed:\n http://user:hunter2@host") == (
        "MLflow at http://host:9/x failed: http://host"
    )
