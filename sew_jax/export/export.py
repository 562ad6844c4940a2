"""A trained model in a form that others load: StableHLO programs, or a Hugging Face folder; with a card."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from sew_jax.checkpoints.hf_config import Architecture, write_architecture
from sew_jax.checkpoints.hf_folder import write_folder
from sew_jax.checkpoints.pretrained import Origin, open_origin
from sew_jax.compression import Compression, parse_table
from sew_jax.console import say
from sew_jax.decoding.recognizer import load_finetuned
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting
from sew_jax.evaluation.tradeoff import Row, read_tradeoff
from sew_jax.export.model_card import programs_use, transformers_use, write_card
from sew_jax.export.stablehlo import parse_buckets, write_programs
from sew_jax.files import writing_to
from sew_jax.models.config import PretrainHeadConfig

_FORMATS = ("stablehlo", "hf")


def export(config: ConfigDict, workdir: Path) -> None:
    """Writes settings of the model that `config.init_from` names into the workdir, and a README.md that says how to use them.

    Raises:
      UserError: there is no such model, or the form cannot express the settings.
    """
    if config.format not in _FORMATS:
        raise UserError(f"format: {config.format!r} is unknown; choose one of {', '.join(_FORMATS)}")
    several = "," in config.setting and not config.budget
    settings = parse_table(config.setting) if several else [chosen_setting(config)]
    rows = _rows(config.tradeoff, settings) if config.tradeoff else []
    origin = open_origin(config.init_from)
    with writing_to(workdir, "mend that or name another --workdir"):
        if config.format == "hf":
            _hugging_face(config, origin, settings, rows, workdir)
        else:
            _stablehlo(config, origin, settings, rows, workdir)


def _rows(tradeoff: str, settings: Sequence[Compression]) -> list[Row]:
    """What the table says of the settings, which must all be in it."""
    path = Path(tradeoff)
    by_name = [
        (Compression.parse(r.setting), r) for r in read_tradeoff(path.parent if path.name == "tradeoff.json" else path)
    ]
    missing = [str(s) for s in settings if all(s != named for named, _ in by_name)]
    if missing:
        mend = f"evaluate it with --config.settings={','.join(missing)}, or leave tradeoff empty"
        raise UserError(f"tradeoff: {tradeoff} has no row for {missing[0]}; {mend}")
    return [row for setting in settings for named, row in by_name if named == setting]


def _stablehlo(config: ConfigDict, origin: Origin, settings: Sequence[Compression], rows, workdir: Path) -> None:
    buckets = parse_buckets(config.buckets, origin.backbone)
    say(f"sew_jax export: {len(settings)} settings x {len(buckets)} lengths as StableHLO")
    tuned = load_finetuned(config.init_from, config.dtype, SingleDeviceSharding(jax.devices()[0]))
    origin = origin._replace(backbone=tuned.model.backbone)
    programs = write_programs(workdir, tuned, settings, buckets)
    tuned.vocabulary.save(workdir)
    write_card(workdir, origin, tuned.state, settings, rows, programs_use(programs, tuned.vocabulary), "jax")
    say(f"{workdir}/README.md says how they are run")


def _hugging_face(config: ConfigDict, origin: Origin, settings: Sequence[Compression], rows, workdir: Path) -> None:
    if len(settings) > 1:
        raise UserError(
            f"setting: a Hugging Face folder holds one, not {len(settings)}; --config.format=stablehlo takes several"
        )
    (setting,) = settings
    backbone, squeeze = origin.backbone, setting.squeeze
    if setting != Compression(squeeze):
        raise UserError(
            f"setting: transformers has no query or key-value pooling; {Compression(squeeze)} can be exported"
        )
    family = "sew" if squeeze > 1 else "wav2vec2"
    if family == "sew" and backbone.upsampler != "linear":
        raise UserError(
            f"setting: SEW's class in transformers cannot express this model's {backbone.upsampler} up-sampler; export s1q1k1, or "
            f"{setting} with --config.format=stablehlo, or train with --config.model.upsampler=linear at {setting} alone"
        )
    if family == "sew" and squeeze not in backbone.upsample_factors:
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
    told = origin._replace(backbone=backbone, head=head)
    write_card(workdir, told, state, settings, rows, transformers_use(architecture, name), "transformers")
    say(f"{origin.name}, {state}, at {setting}: {workdir} holds it as {name} for transformers")
