"""A trained model in a form that others load: StableHLO, ONNX, a Hugging Face folder, one of our own; with a card."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from sew_jax.checkpoints.hf_config import Architecture, family_of, write_architecture
from sew_jax.checkpoints.hf_families import FAMILIES
from sew_jax.checkpoints.hf_folder import write_folder
from sew_jax.checkpoints.model_folder import WEIGHTS, write_model
from sew_jax.checkpoints.pretrained import Pretrained, open_pretrained
from sew_jax.checks.check import check_config
from sew_jax.compression import Compression, parse_table
from sew_jax.console import listed, say
from sew_jax.decoding.recognizer import load_recognizer
from sew_jax.engines.run_times import need_runtime
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting
from sew_jax.evaluation.tradeoff import Point, read_tradeoff, to_objects
from sew_jax.export.model_card import folder_use, onnx_use, programs_use, shared_record, transformers_use, write_card
from sew_jax.export.stablehlo import write_programs
from sew_jax.files import FOLDER_HINT, local_folder, write_json, writing_to
from sew_jax.models.config import Data2VecConfig, PretrainHeadConfig
from sew_jax.runtime.sharding import make_mesh


def export(config: ConfigDict, workdir: Path) -> None:
    """Writes settings of the model that `config.init_from` names into the workdir, with a README.md on their use.

    Raises:
      UserError: there is no such model, or the form cannot express the settings.
    """
    check_config(config)
    if jax.process_count() > 1:
        raise UserError("export runs in one process; start it on one host")
    pretrained = open_pretrained(config.init_from)
    if config.format == "sew_jax" and not config.setting and not config.budget:
        settings = pretrained.trained
    elif "," in config.setting and not config.budget:
        settings = parse_table(config.setting)
    else:
        runtimes, dtype = _run_by(config, pretrained)
        options = {"init_from": config.init_from, "runtimes": runtimes, "dtype": dtype}
        default = Compression() if Compression() in pretrained.trained else pretrained.trained[0]
        settings = [chosen_setting(config.setting, config.budget, config.tradeoff, default, **options)]
    if pretrained.labels and config.format not in ("hf", "sew_jax"):
        raise UserError(
            f"format: {config.format} is for text, and {pretrained.name} gives labels; hf and sew_jax take them"
        )
    points = _points(config.tradeoff, settings) if config.tradeoff else []
    with writing_to(workdir, FOLDER_HINT), local_folder(workdir) as folder:
        if config.format == "hf":
            said = _hugging_face(config, pretrained, settings, points, folder)
        elif config.format == "sew_jax":
            said = _folder(config, pretrained, settings, points, folder)
        elif config.format == "onnx":
            said = _onnx(config, pretrained, settings, points, folder)
        else:
            said = _stablehlo(config, pretrained, settings, points, folder)
    say(f"{workdir} holds {said}")


def _run_by(config: ConfigDict, pretrained: Pretrained) -> tuple[tuple[str, ...], str]:
    """Run times and the precision, whose points say what the export will reach."""
    if config.format != "onnx":
        return ("jax",), config.dtype or pretrained.backbone.dtype
    return (("onnxruntime",), "int8") if config.weights == "int8" else (("onnxruntime", "openvino"), "float32")


def _points(tradeoff: str, settings: Sequence[Compression]) -> list[Point]:
    """What the table says of the settings, which must all be in it."""
    by_name = [(Compression.parse(point.setting), point) for point in read_tradeoff(tradeoff)]
    missing = [str(s) for s in settings if all(s != named for named, _ in by_name)]
    if missing:
        raise UserError(
            f"tradeoff: {tradeoff} has no row for {missing[0]}; evaluate it with "
            f"--config.settings={','.join(missing)}, or leave tradeoff empty"
        )
    return [point for setting in settings for named, point in by_name if named == setting]


def _stablehlo(
    config: ConfigDict,
    pretrained: Pretrained,
    settings: Sequence[Compression],
    points: Sequence[Point],
    folder: Path,
) -> str:
    say(f"sew_jax export: {len(settings)} settings as StableHLO")
    recognizer = load_recognizer(config.init_from, config.dtype, make_mesh(1, 1, jax.devices()[:1]))
    pretrained = pretrained._replace(backbone=recognizer.model.backbone)
    programs = write_programs(folder, recognizer, settings)
    recognizer.vocabulary.save(folder)
    use = programs_use(programs, recognizer.vocabulary, pretrained.backbone.frame_samples)
    write_card(folder, pretrained, recognizer.state, settings, points, use, "jax")
    return f"{len(programs)} programs; its README.md says how they are run"


def _onnx(
    config: ConfigDict,
    pretrained: Pretrained,
    settings: Sequence[Compression],
    points: Sequence[Point],
    folder: Path,
) -> str:
    need_runtime("onnxruntime", "format")
    from sew_jax.export.onnx_files import write_onnx  # which knows onnx

    say(f"sew_jax export: {len(settings)} settings as ONNX, weights in {config.weights}")
    recognizer = load_recognizer(config.init_from, "float32", make_mesh(1, 1, jax.devices()[:1]))
    pretrained = pretrained._replace(backbone=recognizer.model.backbone)
    write_onnx(folder, recognizer, settings, config.weights)
    recognizer.vocabulary.save(folder)
    use = onnx_use(settings, recognizer.vocabulary, config.weights)
    write_card(folder, pretrained, recognizer.state, settings, points, use, "onnx")
    return f"{len(settings)} graphs; its README.md says how they are run"


def _hugging_face(
    config: ConfigDict,
    pretrained: Pretrained,
    settings: Sequence[Compression],
    points: Sequence[Point],
    folder: Path,
) -> str:
    if len(settings) > 1:
        raise UserError(
            f"setting: a Hugging Face folder holds one, not {len(settings)}; --config.format=stablehlo takes several"
        )
    (setting,) = settings
    if setting != Compression(setting.squeeze):
        raise UserError(
            f"setting: transformers has no query or key-value pooling, merging or rates, as {setting} has; "
            f"{Compression(setting.squeeze)} can be exported"
        )
    family, architecture = _expressed(pretrained, setting, config.drop_tail)
    state, params = pretrained.load(SingleDeviceSharding(jax.devices()[0]))
    write_folder(folder, family, architecture, params, pretrained.vocabulary, pretrained.labels)
    name = write_architecture(family, architecture)["architectures"][0]
    exported = pretrained._replace(backbone=architecture.backbone, head=architecture.head)
    write_card(folder, exported, state, settings, points, transformers_use(architecture, name), "transformers")
    aside = listed("left behind", pretrained.left_behind)
    return f"{pretrained.name}, {state}, at {setting} as {name} for transformers{aside}"


def _folder(
    config: ConfigDict,
    pretrained: Pretrained,
    settings: Sequence[Compression],
    points: Sequence[Point],
    folder: Path,
) -> str:
    if not pretrained.record:
        raise UserError(f"format: {pretrained.name} is a released checkpoint; sew_jax exports what it has trained")
    pretrained = pretrained._replace(record=shared_record(pretrained.record), name=Path(pretrained.name).name)
    state, params = pretrained.load(SingleDeviceSharding(jax.devices()[0]))
    symbols = pretrained.labels or pretrained.vocabulary
    write_model(folder, {**pretrained.record, "state": state}, params, symbols, config.weights)
    if points:
        write_json(folder / "tradeoff.json", to_objects(points))  # a budget picks from it
    write_card(folder, pretrained, state, settings, points, folder_use(symbols), "sew_jax")
    size = (folder / WEIGHTS).stat().st_size / 1e6
    return f"{pretrained.name}, {state}, for sew_jax, {size:.1f} MB in {config.weights}"


def _expressed(pretrained: Pretrained, setting: Compression, drop_tail: bool) -> tuple[str, Architecture]:
    """The family of transformers' classes that computes a model at a setting, and the model as it does."""
    backbone, squeeze = pretrained.backbone, setting.squeeze
    family = family_of(backbone, squeeze)
    kind = FAMILIES[family]
    if kind.squeezes and squeeze not in backbone.upsample_factors:
        has = ", ".join(map(str, backbone.upsample_factors)) or "none"
        raise UserError(f"setting: {setting} has no up-sampler in {pretrained.name}, which has those of: {has}")
    if kind.squeezes and backbone.upsampler != "linear":
        raise UserError(
            f"setting: {kind.stem}'s class in transformers cannot express this model's {backbone.upsampler} "
            f"up-sampler; export {'s1q1k1, or ' if family == 'sew' else ''}{setting} with --config.format=stablehlo, "
            f"or train with --config.model.upsampler=linear at {setting} alone"
        )
    if kind.squeezes and backbone.tail == "keep":
        if not drop_tail:
            raise UserError(
                f"setting: {kind.stem} gives no output for the last frames of an utterance, up to {squeeze - 1} of 20 "
                "ms, this model does; accept that with --config.drop_tail=True"
            )
        backbone = dataclasses.replace(backbone, tail="drop")
    backbone, head = dataclasses.replace(backbone, upsample_factors=(squeeze,)), pretrained.head
    if isinstance(head, Data2VecConfig):
        head = None  # what is left of data2vec 2.0 is its backbone
    elif isinstance(head, PretrainHeadConfig) and (family != "wav2vec2" or head.projection == "mlp"):
        head = None  # transformers has no such class: the backbone goes alone
    return family, Architecture(backbone, head, squeeze)
