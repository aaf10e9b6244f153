"""Where the time of a step goes: torch's profiler, kernels summed by kind."""

from __future__ import annotations

import torch

from benchmarks.contenders import Step

_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention": ("scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax"),
    "copies, gathers": ("copy_", "aten::cat", "index", "aten::clone", "aten::gather", "aten::scatter", "aten::roll"),
    "GELU, SiLU": ("gelu", "silu"),
    "norms": ("layer_norm", "norm"),
    "fills": ("fill_", "zero_"),
    "log-softmax, CE": ("CrossEntropy", "logsumexp", "log_softmax", "aten::softmax"),
    "AdamW": ("Adam", "adam"),
    "foreach": ("_foreach",),
    "elementwise": (
        "mul",
        "add",
        "sub",
        "div",
        "sum",
        "exp",
        "where",
        "sqrt",
        "lerp",
        "mean",
        "pow",
        "maximum",
        "amax",
    ),
}


def shares(step: Step, number: int) -> dict[str, float]:
    """Share of self CPU time by kind over one step (the step before is not measured)."""
    step(number)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(number + 1)
    spent = dict.fromkeys([*_KINDS, "rest"], 0.0)
    for event in profile.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.items()} | {"seconds": total / 1e6}


def _kind(name: str) -> str:
    for kind, parts in _KINDS.items():
        exact = kind == "matrix products"
        if any(name == part if exact else part in name for part in parts):
            return kind
    return "rest"
