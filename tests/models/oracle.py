"""wav2vec 2.0 and SEW written once more, in float64 numpy and as the papers say it: loops, no batches, no masks."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def affine(x, p):
    return x @ p["kernel"] + p["bias"]


def normalize(x, p, axis):
    centred = x - x.mean(axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def conv(x_TxC, kernel_KxIxO, stride, bias=None, groups=1):
    taps, fan_in, out = kernel_KxIxO.shape
    frames, per_group = (len(x_TxC) - taps) // stride + 1, out // groups
    y = np.zeros((frames, out))
    for t in range(frames):
        window = x_TxC[t * stride : t * stride + taps]
        for g in range(groups):
            o = slice(g * per_group, (g + 1) * per_group)
            y[t, o] = np.einsum("ki,kio->o", window[:, g * fan_in : (g + 1) * fan_in], kernel_KxIxO[:, :, o])
    return y if bias is None else y + bias


def extractor(p, wave, strides, norm):
    x = wave[:, None]
    for i, stride in enumerate(strides):
        x = conv(x, p[f"conv_{i}"]["kernel"], stride, p[f"conv_{i}"].get("bias"))
        if norm == "layer":
            x = normalize(x, p[f"norm_{i}"], axis=1)
        elif i == 0:
            x = normalize(x, p["norm_0"], axis=0)  # one group a channel: over time
        x = gelu(x)
    return x


def positions(p, x, stride, groups):
    v = p["weight_v"]
    norms = np.sqrt((v**2).sum((1, 2), keepdims=True))  # torch's weight_norm with dim=2: one gain a tap
    taps = len(v)
    padded = np.pad(x, ((taps // 2, taps // 2), (0, 0)))
    y = conv(padded, v / norms * p["weight_g"][:, None, None], stride, p["bias"], groups)
    if taps % 2 == 0 and stride == 1:
        y = y[:-1]  # fairseq's SamePad
    return gelu(y)


def attention(p, x, heads):
    frames, width = x.shape
    size = width // heads
    q, k, v = (affine(x, p[name]).reshape(frames, heads, size) for name in ("query", "key", "value"))
    out = np.zeros((frames, heads, size))
    for h in range(heads):
        scores = q[:, h] @ k[:, h].T / math.sqrt(size)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, h]
    return affine(out.reshape(frames, width), p["out"])


def feed_forward(p, x):
    return affine(gelu(affine(x, p["ffn_in"])), p["ffn_out"])


def transformer(p, x, layers, heads, pre_norm):
    if not pre_norm:
        x = normalize(x, p["norm"], 1)
    for i in range(layers):
        q = p[f"layer_{i}"]
        if pre_norm:
            x = x + attention(q["attention"], normalize(x, q["attention_norm"], 1), heads)
            x = x + feed_forward(q, normalize(x, q["ffn_norm"], 1))
        else:
            x = normalize(x + attention(q["attention"], x, heads), q["attention_norm"], 1)
            x = normalize(x + feed_forward(q, x), q["ffn_norm"], 1)
    return normalize(x, p["norm"], 1) if pre_norm else x


def project(p, features):
    x = normalize(features, p["feature_norm"], 1)
    return affine(x, p["feature_projection"]) if "feature_projection" in p else x


def wav2vec2(p, wave, *, strides, norm, layers, heads, groups, pre_norm):
    """Hidden states (T, D) of one utterance."""
    x = project(p, extractor(p["frontend"]["extractor"], wave, strides, norm))
    x = x + positions(p["encoder"]["pos_conv"], x, 1, groups)
    return transformer(p["encoder"], x, layers, heads, pre_norm)


def sew(p, wave, squeeze, *, strides, layers, heads, groups):
    """SEW's hidden states (T, D): squeeze_wav2vec2.py without its options."""
    x = project(p, extractor(p["frontend"]["extractor"], wave, strides, "group"))
    frames, width = x.shape
    pooled = x[: frames // squeeze * squeeze].reshape(-1, squeeze, width).mean(1)  # AvgPool1d(S, S)
    convolved = positions(p["encoder"]["pos_conv"], x, squeeze, groups)
    n = min(len(pooled), len(convolved))
    y = transformer(p["encoder"], pooled[:n] + convolved[:n], layers, heads, False)
    y = gelu(affine(y, p["encoder"][f"upsample_{squeeze}"]["linear"])).reshape(n * squeeze, width)
    return np.pad(y, ((0, frames - len(y)), (0, 0)))
