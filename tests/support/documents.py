"""Documents that the models refuse and take, for what else judges documents: JSON Schema, the API server."""

from typing import Any

from pydantic import ValidationError

from dinoctl.spec.job import DinoJob


def job(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    document = {"apiVersion": "dinoctl.io/v1alpha1", "kind": "DinoJob", "metadata": {"name": "a"}, "spec": spec}
    return {**document, **more}


DATA = {"data": {"source": "s3://b/d"}}
BROKEN: list[Any] = [
    {},
    [],
    "text",
    job({}),
    job({"pretrain": DATA}, kind="Job"),
    job({"pretrain": DATA}, apiVersion="v1"),
    job({"pretrain": DATA}, metadata={}),
    job({"pretrain": DATA}, metadata={"name": "Big"}),
    job({"pretrain": DATA}, metadata={"name": "x" * 39}),
    job({"pretrain": DATA}, metadata={"name": "a", "labels": {"x": 1}}),
    job({"pretrain": DATA}, extra=1),
    job({"pretrain": None}),
    job({"pretain": DATA}),
    job({"pretrain": DATA, "pack": {"source": "x"}}),
    job({"pack": {"source": "x"}, "gate": {"dataset": "x"}}),
    job({"evaluate": {"model": {"uri": "x"}, "protocols": {"knn": {"dataset": "x"}}}, "gate": {"dataset": "x"}}),
    job({"pretrain": {}}),
    job({"pretrain": {**DATA, "steps": 0}}),
    job({"pretrain": {**DATA, "steps": "10"}}),
    job({"pretrain": {**DATA, "steps": 1.5}}),
    job({"pretrain": {**DATA, "steps": None}}),
    job({"pretrain": {**DATA, "model": {"arch": "vit_huge"}}}),
    job({"pretrain": {**DATA, "model": {"dropPath": 1}}}),
    job({"pretrain": {**DATA, "model": {"layerScale": 0}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0, 1]}}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.1]}}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.1, 0.2, 0.3]}}}}),
    job({"pretrain": {**DATA, "crops": {"local_crops": {}}}}),
    job({"pretrain": {**DATA, "optimizer": {"betas": [0.9, 1]}}}),
    job({"pretrain": {"data": {"source": {"job": "a", "x": 1}}}}),
    job({"pretrain": {"data": {"source": {"job": "A"}}}}),
    job({"pretrain": {"data": {"source": 5}}}),
    job({"pretrain": {"data": {"source": "s3:x"}}}),
    job({"pretrain": {"data": {"mixture": [{"weight": 1}]}}}),
    job({"pretrain": {"data": {"mixture": [{"source": "x", "weight": 0}]}}}),
    job({"highres": {}}),
    job({"highres": {"parent": {"job": "a"}}}),
    job({"highres": {"from": "models:/a@b"}}),
    job({"highres": {"from": {"model": "a@b"}}}),
    job({"highres": {"from": {"model": "models:/a@b", "uri": "x"}}}),
    job({"distill": {"teacher": {"uri": "x"}, **DATA}}),
    job({"pretrain": DATA, "compute": {"gpusPerWorker": 2}}),
    job({"pretrain": DATA, "compute": {"engine": {"zeroStage": 4}}}),
    job({"pretrain": DATA, "suspend": "yes"}),
    job({"pretrain": DATA, "seed": -1}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "knn": {"k": []}}}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "promote": {"model": "a/b"}}}),
    job({"pretrain": DATA, "gate": {"dataset": "x", "min": 80}}),
    job({"pretrain": DATA, "policy": {"deadline": "3 weeks"}}),
    job({"pretrain": DATA, "policy": {"deadline": 0}}),
    job({"pack": {"source": "x", "shardSize": "5XB"}}),
    job({"pack": {"source": "x", "splits": [1]}}),
]
GOOD: list[dict[str, Any]] = [
    job({"pretrain": DATA}),
    job({"pretrain": DATA, "pack": None, "gate": None, "policy": {"deadline": None}}),
    job({"pretrain": {**DATA, "model": {"layerScale": None, "dropPath": None, "ffn": None}, "heads": {"ibot": None}}}),
    job({"pretrain": {**DATA, "crops": {"global": {"scale": [1, 1]}}}, "policy": {"deadline": "1h30m"}}),
    job({"pretrain": DATA, "policy": {"deadline": 60}, "gate": {"dataset": {"job": "b"}, "min": 1, "promote": None}}),
    job({"pack": {"source": "x", "shardSize": "64MiB", "splits": {"val": 3}}}),
    job({"pack": {"source": "/data/images", "shardSize": 70000}}),
    job({"highres": {"from": {"job": "b"}, "crops": {"augmentation": {"solarize": 0}}}}),
    job({"evaluate": {"model": {"model": "models:/a/3"}, "protocols": {"knn": {"dataset": "x", "k": [1]}}}}),
    job({"pretrain": {"data": {"mixture": [{"source": "x"}, {"source": {"job": "b"}, "weight": 2}]}}}),
]
# Sums and orders of values, which JSON Schema can't say
CONTRADICTORY: list[dict[str, Any]] = [
    job({"pretrain": {"data": {"source": "x", "mixture": [{"source": "y"}]}}}),
    job({"pretrain": {**DATA, "crops": {"local": {"scale": [0.5, 0.1]}}}}),
    job({"pretrain": {**DATA, "model": {"arch": "custom"}}}),
    job({"pretrain": {**DATA, "crops": {"augmentation": {"blur": {"kernel": 8}}}}}),
    job({"pretrain": {**DATA, "steps": 5.0}}),
]


def models_take(document: object) -> bool:
    try:
        DinoJob.model_validate(document, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True
