"""The one way from audio to text: a trained model on its devices, and its programs, each compiled once.

Evaluation, transcription, export and the Python API share it: waves in; symbols, log-probabilities or hidden states
of each frame out. B utterances, N samples, T frames at 50 Hz, V symbols, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sew_jax.checkpoints.hf_weights import model_of, parameter_shapes
from sew_jax.checkpoints.pretrained import Pretrained, open_pretrained
from sew_jax.compression import Compression
from sew_jax.console import listed, say
from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.engines.run_times import Engine
from sew_jax.errors import UserError
from sew_jax.models.backbone import Backbone
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.config import LABEL_HEADS, CTCHeadConfig, Head, precision_fields
from sew_jax.models.ctc import CTCModel
from sew_jax.models.features import FeatureModel, layers_at_frames
from sew_jax.models.frame_classifier import FrameClassifierModel
from sew_jax.models.int8 import operands
from sew_jax.models.parameters import merge_params
from sew_jax.runtime.programs import compile_table
from sew_jax.runtime.sharding import batch_sharding

Speech = CTCModel | ClassifierModel | FrameClassifierModel | FeatureModel
# (model, parameters, {"wave": (B, N), "length": (B,)}, setting) -> ((B, T, ...), frames of each utterance (B,))
Output = Callable[[Speech, Any, dict[str, jax.Array], Compression], tuple[jax.Array, jax.Array]]


class Recognizer:
    """A model, its parameters on all devices of a mesh, and its programs.

    Attributes:
      name: as `init_from` gave it.
      state: which state of it: an update, or of a released one the family.
      model: without a vocabulary it has no head, and hidden states alone can be had.
      params: its parameters.
      vocabulary: of the symbols of its CTC head; None where it has no such head.
      labels: of a classifier; None where it is none.
      trained: the table of its training.
      mesh: the devices.
      no_text: why what there is of a CTC head gives no text; else empty.
      programs: (output, setting, bucket, rows, type of the wave) -> executable. Models of one architecture may share
        them.
    """

    def __init__(
        self,
        name: str,
        state: str,
        model: Speech,
        params: Any,
        vocabulary: Vocabulary | None,
        trained: list[Compression],
        mesh: Mesh,
        labels: Labels | None = None,
    ):
        self.name, self.state, self.model, self.params = name, state, model, params
        self.vocabulary, self.trained, self.mesh, self.labels = vocabulary, trained, mesh, labels
        self.no_text = ""
        self.programs: dict[tuple, Any] = {}

    @property
    def engine(self) -> Engine:
        """What computes it: JAX here."""
        return Engine("jax", self.model.backbone.precision)

    @functools.cached_property
    def _operands(self) -> Any:
        """Parameters as its programs take them."""
        return operands(self.params, self.model.backbone)

    def compile(
        self,
        output: Output,
        settings: Iterable[Compression],
        rows: Mapping[int, int],
        what: str,
        dtype: Any = jnp.int16,
    ) -> None:
        """Compiles those programs of settings x buckets that are not there yet.

        Args:
          rows: bucket in samples -> utterances of a batch, a multiple of the devices.
          what: name of the programs in the progress lines.
          dtype: of the waves: int16, or float32 of which 1 is full scale.

        Raises:
          UserError: the model cannot compute a setting.
        """
        for setting in (settings := list(settings)):
            self.model.backbone.check_setting(setting)
        keys = [(setting, bucket) for setting in settings for bucket in rows]
        missing = [key for key in keys if self._key(output, *key, rows[key[1]], dtype) not in self.programs]
        if not missing:
            return
        sharding = batch_sharding(self.mesh)

        def shapes(key):
            count = rows[key[1]]
            wave = jax.ShapeDtypeStruct((count, key[1]), dtype, sharding=sharding)
            return self._operands, {
                "wave": wave,
                "length": jax.ShapeDtypeStruct((count,), jnp.int32, sharding=sharding),
            }

        jitted = jax.jit(functools.partial(output, self.model), static_argnames="compression")
        compiled = compile_table(jitted, missing, shapes, what)
        for setting, bucket in missing:
            self.programs[self._key(output, setting, bucket, rows[bucket], dtype)] = compiled[setting, bucket]

    def run(self, output: Output, setting: Compression, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """What a compiled program gives of a batch that lies on the mesh; it returns before the devices are done."""
        rows, bucket = batch["wave"].shape
        return self.programs[self._key(output, setting, bucket, rows, batch["wave"].dtype)](self._operands, batch)

    @staticmethod
    def _key(output: Output, setting: Compression, bucket: int, rows: int, dtype) -> tuple:
        return output, setting, bucket, rows, jnp.dtype(dtype).name


def load_recognizer(
    init_from: str, dtype: str, mesh: Mesh, *, need_text: bool = True, text_normalizer: str = ""
) -> Recognizer:
    """The best checkpoint of a run (else its newest), or a released one, with its parameters on each device.

    Args:
      init_from: as `open_pretrained` takes it.
      dtype: of the computation; empty keeps that of training.
      need_text: a model without a CTC head is refused; else its hidden states alone can be had.
      text_normalizer: of what errors are counted on; empty keeps that of training.

    Raises:
      UserError: there is none, or its files do not fit each other.
    """
    pretrained = open_pretrained(init_from)
    head = _useful_head(pretrained)
    if need_text and not isinstance(head, CTCHeadConfig):
        raise no_head(init_from, pretrained.no_text, pretrained.labels)
    precision = precision_fields(dtype or pretrained.backbone.dtype)
    changes: dict[str, Any] = {"remat": "none", "loop_layers": True, **precision}
    backbone = dataclasses.replace(pretrained.backbone, **changes)
    state, saved = pretrained.load(NamedSharding(mesh, PartitionSpec()))
    if not head:
        saved = {"backbone": saved["backbone"]}
    # a model that never masks may lack the mask embedding, which is not used here
    saved["backbone"].setdefault("mask_embedding", jnp.zeros(backbone.width))
    params, _, _ = merge_params(parameter_shapes(pretrained.backbone, head), saved, init_from, may_be_new=())
    size = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    aside = listed("left behind", pretrained.left_behind)
    say(f"  model     {init_from}, {state}: {size:.2f} M parameters, {backbone.precision} compute{aside}")
    model = model_of(backbone, head)
    assert isinstance(model, Speech)
    vocabulary = pretrained.vocabulary.with_normalizer(text_normalizer) if head and pretrained.vocabulary else None
    recognizer = Recognizer(
        init_from, state, model, params, vocabulary, pretrained.trained, mesh, pretrained.labels if head else None
    )
    recognizer.no_text = pretrained.no_text
    return recognizer


def _useful_head(pretrained: Pretrained) -> Head | None:
    """A head whose outputs have names."""
    if isinstance(pretrained.head, CTCHeadConfig):
        return pretrained.head if pretrained.vocabulary else None
    return pretrained.head if isinstance(pretrained.head, LABEL_HEADS) else None


def no_head(name: str, why: str = "", labels: Labels | None = None) -> UserError:
    """What is said of a model that gives no text: why what it has of a CTC head is of no use, or that it has none."""
    if labels:
        return UserError(
            f"init_from: {name} gives labels ({labels}), not text: sew_jax.load({name!r}).{labels.method}(AUDIO) says "
            "which, and configs/evaluate.py how often it is right"
        )
    if why:
        return UserError(f"init_from: {name} gives no text: {why}; mend that, or fine-tune it (configs/finetune.py)")
    return UserError(f"init_from: {name} has no CTC head yet; fine-tune it first (configs/finetune.py)")


def log_probs(model: Speech, params, batch: dict[str, jax.Array], compression: Compression):
    """Natural log-probability of each symbol at each frame, (B, T, V) float32, and frames of each utterance, (B,)."""
    logits, length = model.apply({"params": params}, batch["wave"], batch["length"], compression, deterministic=True)
    return jax.nn.log_softmax(logits), length


def best_symbols(model: Speech, params, batch: dict[str, jax.Array], compression: Compression):
    """The most likely symbol of each frame, (B, T), and the frames of each utterance, (B,)."""
    logits, length = model.apply({"params": params}, batch["wave"], batch["length"], compression, deterministic=True)
    return logits.argmax(-1).astype(jnp.int32), length


@functools.cache  # the same output has the same programs
def hidden_states(layer: int | None) -> Output:
    """Hidden states at 50 Hz, (B, T, D) float32: the backbone's output, or (from 1) what a transformer layer gives.

    A layer's frames are squeezed or compressed, and merged; they are repeated up to 50 Hz.
    """

    def compute(model: Speech, params, batch: dict[str, jax.Array], compression: Compression):
        hidden, noted = Backbone(model.backbone).apply(
            {"params": params["backbone"]},
            batch["wave"],
            batch["length"],
            compression,
            deterministic=True,
            mutable=["intermediates"],
        )
        x_BxTxD, length_B = hidden.context_BxTxD, hidden.length_B
        if layer is not None:
            (states,) = noted["intermediates"]["encoder"]["states"]
            layers = layers_at_frames(model.backbone, states, compression, length_B, x_BxTxD.shape[1])
            x_BxTxD = layers[layer - 1]
        return x_BxTxD.astype(jnp.float32), length_B

    return compute
