"""The programs that are compared, each as a function that does one whole training step.

A step is: masks, teacher, student, losses, backward, clipping, AdamW, moving average; crops lie in memory as floats.
lightly-train is imported and called, nothing else: its licence (AGPL-3.0) forbids to take from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.settings import Settings

Step = Callable[[int], float]
"""Does the step of that number and returns its loss."""


def crops(settings: Settings) -> tuple[Tensor, Tensor]:
    """Crop-major global and local crops of noise."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2 * settings.batch, settings.global_size), (settings.local_crops * settings.batch, settings.local_size))
    whole, small = (torch.randn(rows, 3, size, size, generator=generator) for rows, size in shapes)
    return whole, small


def dinoctl(settings: Settings, drop_path: float, options: dict[str, Any]) -> Step:
    """This project's step, by the engine of a single process; `options` go into the compute section."""
    from dinoctl.data.mask import masks as draw_masks
    from dinoctl.model import ViTConfig
    from dinoctl.spec.compute import Compute
    from dinoctl.spec.compute import Engine as EngineSection
    from dinoctl.spec.recipe import Head, Heads, Losses, Masks, Optimizer
    from dinoctl.training.context import ProcessContext
    from dinoctl.training.engines.build import build_engine
    from dinoctl.training.execution import set_execution
    from dinoctl.training.groups import apply, parameter_groups
    from dinoctl.training.learner import pretraining_learner
    from dinoctl.training.networks import build_network
    from dinoctl.training.schedules import StepValues

    config = ViTConfig(
        embed_dim=settings.dim,
        depth=settings.depth,
        num_heads=settings.heads,
        patch_size=settings.patch,
        img_size=settings.global_size,
        drop_path=drop_path,
    )
    head = Head(prototypes=settings.prototypes, hidden=settings.hidden, bottleneck=settings.bottleneck)
    learner = pretraining_learner(
        build_network(config, Heads(dino=head, ibot=None), generator=torch.Generator().manual_seed(0)),
        Losses(centering="softmax"),
    )
    optimizer = Optimizer(layer_decay=0.9)
    groups = parameter_groups(learner.named_parameters(), depth=settings.depth, optimizer=optimizer)
    compute = Compute(gpus_per_worker=0, engine=EngineSection(name="ddp"), precision="fp32", **options)
    set_execution(learner, compute, torch.device("cpu"))
    engine = build_engine(compute, learner, groups, optimizer, ProcessContext(torch.device("cpu")))
    whole, small = crops(settings)
    grid = (settings.global_size // settings.patch,) * 2

    def step(number: int) -> float:
        masks = draw_masks(2 * settings.batch, grid, Masks(), seed=0, step=number)
        apply(engine.groups, StepValues(1e-6 * number, 0.0, 0.04, 0.992, 0.04))
        counts = masks.sum(axis=1)
        weights = torch.from_numpy(np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32))
        indices = torch.from_numpy(np.flatnonzero(masks))
        loss, _ = engine.forward(whole, small, torch.from_numpy(masks), indices, weights, 0.04, number)
        engine.backward(loss)
        engine.clip(optimizer.clip_norm)
        engine.step()
        engine.average(0.992)
        return float(loss.detach())

    return step


def lightly_train(settings: Settings, drop_path: float) -> Step:
    """lightly-train's DINOv2 method in the hooks' order of its trainer, without the trainer's own cost."""
    from lightly_train._methods.dinov2 import dinov2
    from lightly_train._models.dinov2_vit.dinov2_vit import DINOv2ViTModelWrapper
    from lightly_train._models.dinov2_vit.dinov2_vit_src.layers import MemEffAttention
    from lightly_train._models.dinov2_vit.dinov2_vit_src.layers.block import Block
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer
    from lightly_train._models.embedding_model import EmbeddingModel

    torch.manual_seed(0)
    vit = DinoVisionTransformer(
        img_size=settings.global_size,
        patch_size=settings.patch,
        embed_dim=settings.dim,
        depth=settings.depth,
        num_heads=settings.heads,
        mlp_ratio=4,
        init_values=1e-5,
        drop_path_rate=drop_path,
        drop_path_uniform=True,
        block_chunks=0,
        block_fn=functools.partial(Block, attn_class=MemEffAttention),
    )
    method = dinov2.DINOv2(
        dinov2.DINOv2Args(
            output_dim=settings.prototypes,
            hidden_dim=settings.hidden,
            dino_bottleneck_dim=settings.bottleneck,
            weight_decay_start=0.04,
        ),
        dinov2.DINOv2AdamWViTArgs(),
        EmbeddingModel(DINOv2ViTModelWrapper(vit)),
        global_batch_size=settings.batch,
        num_input_channels=3,
    )
    method.train()
    dinov2.freeze_eval_module(method.teacher_embedding_model)
    dinov2.freeze_eval_module(method.teacher_head)
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=125_000, max_epochs=100)
    method._trainer = trainer
    method._log_time_batch_end = lambda: None
    (optimizer,), (scheduler,) = method.configure_optimizers()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    whole, small = crops(settings)
    batch = {"views": [*whole.chunk(2), *small.chunk(settings.local_crops)]}

    def step(number: int) -> float:
        trainer.global_step = number
        loss = method.training_step_impl(batch, number).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, method.method_args.gradient_clip_val)
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        scheduler["scheduler"].step()
        method.on_train_batch_end(None, batch, number)
        return float(loss.detach())

    return step
