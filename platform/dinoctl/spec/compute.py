"""How many workers of which size, with which engine and precision."""

from typing import Literal

from pydantic import model_validator

from dinoctl.spec.base import Section, Size, choice, derived, paper


class Engine(Section):
    """What shards and steps the model."""

    name: Literal["deepspeed", "fsdp", "ddp"] = choice(
        "deepspeed", "deepspeed shards with ZeRO, fsdp with PyTorch's FSDP2; ddp keeps a copy a worker."
    )
    zero_stage: Literal[1, 2, 3] | None = derived(
        "What ZeRO shards: 1 optimizer and averages, 2 also gradients, 3 also parameters. deepspeed only; 1 has the "
        "least communication and suits models that fit whole.",
        "3 with deepspeed",
    )


class Compute(Section):
    """Resources of a job."""

    workers: int = choice(1, "Worker processes (ranks).", ge=1)
    gpus_per_worker: Literal[0, 1] = choice(1, "GPUs of a worker; 0 trains on the CPU.")
    device_memory: Size = choice(
        40 * 2**30,
        "Bytes of a worker's GPU (default 40GiB, those of the paper's ViT-g), for choices made by memory. Workers on "
        "CPUs share a machine's memory: there the choice is always what takes least.",
    )
    cpus_per_worker: float = choice(1.0, "CPU cores of a worker.", gt=0)
    threads_per_worker: int = choice(1, "Threads of a CPU kernel in a worker.", ge=1)
    loader_workers: int = paper(
        10, "Processes of a worker that decode and augment; 0 is in the worker itself.", "code config", ge=0
    )
    engine: Engine = choice(Engine(), "What shards and steps the model.")
    precision: Literal["bf16", "fp32"] = choice(
        "bf16", "Compute precision; masters, losses and averages are fp32 always."
    )
    activation_checkpointing: Literal["none", "selective", "full"] = choice(
        "none",
        "What the backward pass computes again instead of keeping it: nothing, the FFN's inner layer, or whole blocks.",
    )
    compile: bool = choice(False, "Compile each block with torch.compile; the first steps take longer.")

    @model_validator(mode="after")
    def _fits(self) -> "Compute":
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "a compiled block keeps what its compiler decides: use activationCheckpointing none or full"
            )
        if self.engine.name != "deepspeed" and self.engine.zero_stage is not None:
            raise ValueError(f"engine {self.engine.name} has no zeroStage; leave it out or use engine deepspeed")
        return self
