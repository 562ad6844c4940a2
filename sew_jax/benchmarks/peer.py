"""The same work by transformers, for child processes: a model of the same shape with random weights, in PyTorch."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sew_jax.benchmarks.contest import Bench
from sew_jax.benchmarks.memory import RESIDENT, Memory
from sew_jax.checkpoints.hf_config import Architecture, write_architecture
from sew_jax.console import say
from sew_jax.errors import UserError
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig

SEW_SQUEEZE = 2  # of the published ones


def peer_config(backbone: BackboneConfig, head: CTCHeadConfig | PretrainHeadConfig) -> dict[str, Any] | None:
    """transformers' `config.json` for a model of ours, dropout included; None, and a line why, where it has none."""
    sew = backbone.frontend == "compact"
    if missing := [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]:
        say(f"  no peer: {' and '.join(missing)} not installed")
        return None
    if sew and isinstance(head, PretrainHeadConfig):
        say("  no peer: transformers does not pre-train SEW")
        return None
    if sew:
        family, architecture = "sew", Architecture(dataclasses.replace(backbone, tail="drop"), head, SEW_SQUEEZE)
    else:
        family, architecture = "wav2vec2", Architecture(backbone, head, 1)
    try:
        return write_architecture(family, architecture)
    except UserError as error:
        say(f"  no peer: {error}")
        return None


def setting(backbone: BackboneConfig) -> str:
    """At which of our settings a model computes what the peer's does."""
    return f"s{SEW_SQUEEZE}q1k1" if backbone.frontend == "compact" else "s1q1k1"


def inference(config: dict[str, Any], dtype: str, batch: int, samples: int, platform: str) -> Bench:
    """Waveforms (batch, samples) to logits: `eager`, and `compiled` where torch.compile works."""
    torch, device = _open_torch(platform)
    if not device:
        return _bench(torch, device, {}, {}, [f"torch {torch.__version__} has no {platform}"])
    from transformers import AutoConfig, AutoModelForCTC

    kind = getattr(torch, dtype)
    model = AutoModelForCTC.from_config(AutoConfig.for_model(**config)).eval().to(device, kind)
    wave = torch.tensor(np.random.default_rng(0).normal(size=(batch, samples)), dtype=kind, device=device)

    def logits(function) -> None:
        with torch.inference_mode():
            function(wave)
        _synchronize(torch, device)

    return _eager_and_compiled(torch, device, model, logits)


def training(config: dict[str, Any], dtype: str, batch: int, samples: int, platform: str) -> Bench:
    """Updates of pre-training on waveforms (batch, samples): `eager`, and `compiled` as above; in bfloat16 by autocast.

    Masks and negatives are drawn once, before anything is timed, where ours are drawn in every update.
    """
    torch, device = _open_torch(platform)
    if not device:
        return _bench(torch, device, {}, {}, [f"torch {torch.__version__} has no {platform}"])
    from transformers import AutoConfig, AutoModelForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    model = AutoModelForPreTraining.from_config(AutoConfig.for_model(**config)).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    np.random.seed(0)  # noqa: NPY002 - which transformers draws with
    frames = int(model._get_feat_extract_output_lengths(samples))
    mask = _compute_mask_indices((batch, frames), 0.65, 10)
    negatives = _sample_negative_indices((batch, frames), config["num_negatives"], mask)
    wave = torch.tensor(np.random.default_rng(0).normal(size=(batch, samples)), dtype=torch.float32, device=device)
    inputs = {"mask_time_indices": mask, "sampled_negative_indices": negatives}
    inputs = {name: torch.tensor(array, device=device) for name, array in inputs.items()}
    half = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def update(function) -> None:
        with half:
            loss = function(wave, **inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _synchronize(torch, device)

    if device == "cpu":  # where compiling takes minutes and gains nothing
        return _bench(torch, device, {"eager": lambda: update(model)}, {"eager": _facts(model)}, [])
    return _eager_and_compiled(torch, device, model, update)


def _eager_and_compiled(torch: Any, device: str, model: Any, run: Callable[[Any], object]) -> Bench:
    """What `run` does with the model, and with its torch.compile where that works."""
    cases: dict[str, Callable[[], object]] = {"eager": functools.partial(run, model)}
    cases["compiled"] = functools.partial(run, torch.compile(model))
    facts, problems = {name: _facts(model) | {"compile_seconds": 0.0} for name in cases}, []
    begin = time.perf_counter()
    try:
        cases["compiled"]()
    except Exception as error:  # compilers fail in many ways; the model itself runs in any case
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problems.append(f"torch.compile failed: {(lines or [type(error).__name__])[0][:200]}")
        del cases["compiled"], facts["compiled"]
    else:
        facts["compiled"]["compile_seconds"] = time.perf_counter() - begin
    return _bench(torch, device, cases, facts, problems)


def _open_torch(platform: str) -> tuple[Any, str]:
    """torch and its name of the device that is JAX's `platform`; an empty one where it has none."""
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compiling is measured
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    if platform == "cpu":
        return torch, "cpu"
    if platform != "gpu" or not torch.cuda.is_available():
        return torch, ""
    torch.set_float32_matmul_precision("high")  # TF32, which is XLA's default
    return torch, "cuda"


def _synchronize(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _facts(model: Any) -> dict[str, Any]:
    return {"class": type(model).__name__, "attention": model.config._attn_implementation}


def _bench(
    torch: Any, device: str, cases: dict[str, Callable[[], object]], facts: dict[str, Any], problems: list[str]
) -> Bench:
    import transformers

    memory = RESIDENT
    if device == "cuda":
        memory = Memory(torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "problems": problems}
    return Bench(cases, facts, about, memory)
