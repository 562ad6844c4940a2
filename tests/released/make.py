"""Makes the reference folders and outputs beside this file; needs torch and transformers 4.57, which the tests do not.

  python -m tests.released.make tests/released          # all of them
  python -m tests.released.make tests/released wavlm    # one, the others stay as they are

Random weights, as `save_pretrained` writes them, and what transformers computes with them in float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file

from tests.released.inputs import VOCABULARY, waves

BASE = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=4,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    layerdrop=0.0,
)
LARGE = dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
CONV = dict(conv_dim=[16] * 7)
CODES = dict(
    num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=12, num_negatives=5, feat_quantizer_dropout=0.0
)
DATA2VEC = {key: value for key, value in (BASE | CONV).items() if key != "num_conv_pos_embeddings"}
DATA2VEC |= dict(num_conv_pos_embeddings=3, conv_pos_kernel_size=5)
WAVLM = BASE | CONV | dict(num_buckets=16, max_bucket_distance=12)  # narrower than the utterances are long
SEW = dict(num_conv_pos_embeddings=7, conv_dim=[4] + [8] * 4 + [16] * 4 + [32] * 4)
NAMES = ("ANGRY", "CALM", "VERY HAPPY")
LABELS = dict(classifier_proj_size=20, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)})
SWAHILI = {s: i for i, s in enumerate(("<pad>", "<s>", "</s>", "<unk>", "|", *"aiunkmwteholysbjrgdpfzvc'"))}
OTHER = dict(target_lang="swh", ignore_mismatched_sizes=True)  # as its users load a language
SEWD = {key: x for key, x in (BASE | SEW).items() if key != "layerdrop"}
SEWD |= dict(position_buckets=4, max_position_embeddings=7)  # fewer than the windows of an utterance
# name -> (class, configuration, whether the processor normalises)
MODELS = {
    "wav2vec2": (hf.Wav2Vec2Model, hf.Wav2Vec2Config(**BASE, **CONV), False),
    "wav2vec2_pretraining": (hf.Wav2Vec2ForPreTraining, hf.Wav2Vec2Config(**BASE, **CONV, **CODES), True),
    "wav2vec2_ctc": (hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config(**BASE, **CONV), True),
    "xlsr_ctc": (hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config(**BASE, **CONV, **LARGE), True),
    "hubert": (hf.HubertModel, hf.HubertConfig(**BASE, **CONV, **LARGE), True),
    "hubert_ctc": (hf.HubertForCTC, hf.HubertConfig(**BASE, **CONV), True),
    "unispeech_ctc": (hf.UniSpeechForCTC, hf.UniSpeechConfig(**BASE, **CONV, **LARGE), True),
    "unispeech_sat": (hf.UniSpeechSatModel, hf.UniSpeechSatConfig(**BASE, **CONV), False),
    "data2vec": (hf.Data2VecAudioModel, hf.Data2VecAudioConfig(**DATA2VEC), True),
    "data2vec_ctc": (hf.Data2VecAudioForCTC, hf.Data2VecAudioConfig(**DATA2VEC, conv_bias=True), True),
    "wavlm": (hf.WavLMModel, hf.WavLMConfig(**WAVLM), False),
    "wavlm_ctc": (hf.WavLMForCTC, hf.WavLMConfig(**WAVLM, **LARGE), True),
    "mms_ctc": (hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config(**BASE, **CONV, **LARGE, adapter_attn_dim=8), True),
    "wav2vec2_labels": (
        hf.Wav2Vec2ForSequenceClassification,
        hf.Wav2Vec2Config(**BASE, **CONV, **LABELS, use_weighted_layer_sum=True),
        True,
    ),
    "wavlm_labels": (
        hf.WavLMForSequenceClassification,
        hf.WavLMConfig(**WAVLM, **LARGE, **LABELS, use_weighted_layer_sum=True),
        True,
    ),
    "sew_labels": (hf.SEWForSequenceClassification, hf.SEWConfig(**BASE | SEW, **LABELS), True),
    "sew": (hf.SEWModel, hf.SEWConfig(**BASE | SEW), True),
    "sew_d": (hf.SEWDModel, hf.SEWDConfig(**SEWD), True),
    "sew_d_ctc": (hf.SEWDForCTC, hf.SEWDConfig(**SEWD | dict(squeeze_factor=3)), True),
    "sew_ctc": (hf.SEWForCTC, hf.SEWConfig(**BASE | SEW | dict(squeeze_factor=3)), True),
}


def make(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Writes one folder, returns its outputs by utterance: every layer's hidden states and the head's output."""
    cls, config, normalize = MODELS[name]
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # none at a special value: zero biases would hide a forgotten one
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    mask = getattr(config, "feat_extract_norm", "layer") == "layer"  # data2vec has no other
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=mask)
    if name.endswith("ctc"):
        symbols = {s: i for i, s in enumerate(VOCABULARY)}
        languages = {"eng": symbols, "swh": SWAHILI} if name.startswith("mms") else {}
        folder.joinpath("vocab.json").write_text(json.dumps(languages or symbols))
        target = "eng" if languages else None
        tokenizer = hf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang=target)
        for language, symbols in languages.items():
            write_adapter(model, folder, language, len(symbols))
        hf.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    else:
        extractor.save_pretrained(folder)
    outputs = run(model, name, extractor, mask)
    if name.startswith("mms"):
        outputs |= run(hf.AutoModelForCTC.from_pretrained(folder, **OTHER).eval(), f"{name}#swh", extractor, mask)
    if name.endswith("pretraining"):
        outputs |= pretraining_loss(model, extractor, name)
    return outputs


def write_adapter(model, folder: Path, language: str, symbols: int) -> None:
    """A language's adapters and head, as facebook/mms-1b-all has them: English's are those in the model's own file."""
    tensors = {k: x for k, x in model.state_dict().items() if ".adapter_layer." in k or k.startswith("lm_head.")}
    if language != "eng":
        tensors = {k: torch.randn(symbols if "lm_head" in k else len(x), *x.shape[1:]) / 5 for k, x in tensors.items()}
    save_file({k: x.contiguous() for k, x in tensors.items()}, folder / f"adapter.{language}.safetensors")


def run(model, name: str, extractor, mask: bool) -> dict[str, np.ndarray]:
    """Outputs of each utterance alone, and of all in a padded batch where the model is run with a mask."""
    outputs = {}
    for wave in waves():
        inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
        head = out.logits if "logits" in out else out.projected_states if "projected_states" in out else out[0]
        key = f"{name}/{len(wave)}"
        outputs[f"{key}/head"] = head[:, None][0].numpy() if name.endswith("labels") else head[0].numpy()
        for i, hidden in enumerate(out.hidden_states):
            outputs[f"{key}/layer_{i}"] = hidden[0].numpy()
    if mask:  # layer-norm extractors alone are indifferent to padding
        inputs = extractor(waves(), sampling_rate=16_000, return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model(**inputs)
        head = out.logits if "logits" in out else out[0]
        outputs[f"{name}/padded/head"] = (head[:, None] if name.endswith("labels") else head).numpy()
    return outputs


def pretraining_loss(model, extractor, name: str) -> dict[str, np.ndarray]:
    """The training loss on masks, negatives and Gumbel noise that are drawn here; every dropout is 0."""
    random = np.random.default_rng(1)
    wave, frames, codebooks, codes = waves()[-1], 19, 2, CODES["num_codevectors_per_group"]
    masked = np.sort(random.choice(frames - 1, 8, replace=False))
    mask = np.zeros((1, frames), bool)
    mask[0, masked] = True
    negatives = np.zeros((1, frames, CODES["num_negatives"]), np.int64)
    for i in masked:
        negatives[0, i] = random.choice(masked[masked != i], CODES["num_negatives"])
    noise = random.gumbel(size=(frames, codebooks, codes)).astype(np.float32)

    def gumbel_softmax(logits, tau, hard):
        assert hard
        noisy = (logits + torch.tensor(noise).reshape(logits.shape)) / tau
        return torch.nn.functional.one_hot(noisy.argmax(-1), codes).float()

    original, torch.nn.functional.gumbel_softmax = torch.nn.functional.gumbel_softmax, gumbel_softmax
    model.train()
    inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, mask_time_indices=torch.tensor(mask), sampled_negative_indices=torch.tensor(negatives))
    torch.nn.functional.gumbel_softmax = original
    model.eval()
    values = {"loss": out.loss, "contrastive": out.contrastive_loss, "diversity": out.diversity_loss}
    arrays = {k: v.numpy() for k, v in values.items()}
    arrays |= {"masked": masked, "negatives": negatives[0, masked], "noise": noise[masked]}
    arrays |= {"temperature": np.float32(model.quantizer.temperature)}
    return {f"{name}/pretraining/{k}": v for k, v in arrays.items()}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    names = sys.argv[2:] or list(MODELS)
    outputs = dict(np.load(root / "outputs.npz")) if sys.argv[2:] else {}
    for name in names:
        outputs |= make(name, root / name)
    np.savez_compressed(root / "outputs.npz", **outputs)
