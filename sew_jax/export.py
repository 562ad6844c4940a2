"""One setting of a trained model in a form that others load."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from sew_jax.compression import Compression
from sew_jax.convert import Architecture, write_architecture
from sew_jax.errors import UserError
from sew_jax.huggingface import write_folder
from sew_jax.models.config import PretrainHeadConfig
from sew_jax.origin import open_origin
from sew_jax.progress import say


def export(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.setting` of the model that `config.init_from` names into the workdir, as a Hugging Face folder.

    Raises:
      UserError: there is no such model, or no class of transformers computes that setting.
    """
    if config.format != "hf":
        raise UserError(f"format: {config.format!r} is unknown; hf is the one there is")
    origin, setting = open_origin(config.init_from), Compression.parse(config.setting)
    backbone, squeeze = origin.backbone, setting.squeeze
    if setting != Compression(squeeze):
        raise UserError(
            f"setting: transformers has no query or key-value pooling; {Compression(squeeze)} can be exported"
        )
    family = "sew" if squeeze > 1 else "wav2vec2"
    if family == "sew" and backbone.upsampler == "linear" and squeeze not in backbone.upsample_factors:
        has = ", ".join(map(str, backbone.upsample_factors)) or "none"
        raise UserError(f"setting: {setting} has no up-sampler in {origin.name}, which has those of: {has}")
    if family == "sew" and backbone.tail == "keep":
        if not config.drop_tail:
            raise UserError(
                f"setting: SEW gives no output for the last frames of an utterance, up to {squeeze - 1} of 20 ms, this model "
                "does; accept that with --config.drop_tail=True"
            )
        backbone = dataclasses.replace(backbone, tail="drop")
    backbone, head = dataclasses.replace(backbone, upsample_factors=(squeeze,)), origin.head
    if isinstance(head, PretrainHeadConfig) and (family == "sew" or head.projection == "mlp"):
        head = None  # transformers has no such class: the backbone goes alone
    state, params = origin.load(SingleDeviceSharding(jax.devices()[0]))
    architecture = Architecture(backbone, head, squeeze)
    write_folder(workdir, family, architecture, params, origin.vocabulary)
    name = write_architecture(family, architecture)["architectures"][0]
    say(f"{origin.name}, {state}, at {setting}: {workdir} holds it as {name} for transformers")
