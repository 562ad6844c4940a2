"""Parameter trees: names of their leaves, and one tree's values in the place of another's."""

from typing import Any

import jax
import jax.numpy as jnp

from sew_jax.errors import UserError

# Parameters that a checkpoint may lack: what another table of settings or another task adds, and what is never masked
_FRESH = (
    "backbone/encoder/upsample_",
    "backbone/encoder/compressor/",
    "backbone/mask_embedding",
    "symbols/",
    "quantizer/",
    "project_",
    "decoder/",
    "projector/",
    "classifier/",
    "layer_weights",
)
_LAST = ("symbols/", "classifier/")  # as wide as what they give
# In the names of the backbone's kernels that meet float32 whatever its dtype
_WIDE = ("/gate/", "/compressor/weight/")


def path_name(path) -> str:
    """A tree path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def merge_params(fresh, saved, source: str, may_be_new: tuple[str, ...] = _FRESH) -> tuple[Any, list[str], list[str]]:
    """Parameters of `saved` in the tree of `fresh`: (parameters, names that stay fresh, names of `saved` without use).

    Trees of shapes alone will do.

    Raises:
      UserError: shapes differ, or something is missing that no other table or task explains.
    """
    have = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(saved)}
    new, wrong = [], []

    def take(path, x):
        name = path_name(path)
        if name in have and have[name].shape == x.shape:
            return have.pop(name)
        fits = name.startswith(may_be_new) and (name not in have or name.startswith(_LAST))
        (new if fits else wrong).append(
            name if fits else f"{name} {have[name].shape if name in have else 'missing'}, not {x.shape}"
        )
        have.pop(name, None)
        return x

    params = jax.tree_util.tree_map_with_path(take, fresh)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"init_from: the checkpoint of {source} has another shape: {'; '.join(wrong[:3])}{more}; set model.* as "
            "that run did"
        )
    return params, new, list(have)


def cast_ahead(params: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters for a model that only computes in `dtype`: kernels that each pass would cast are cast once.

    The same numbers to the bit. In bfloat16 half of their memory; on a CPU the casts were 8 % of a pass of base.
    """

    # heads compute in float32
    return params | {"backbone": cast_kernels(params["backbone"], dtype)}


def cast_kernels(params: Any, dtype: str) -> Any:
    """Parameters of a part of the backbone with the kernels that it would cast cast to `dtype`."""

    def cast(path, x):
        name = path_name(path)
        narrow = name.endswith("/kernel") and not any(part in name for part in _WIDE)
        return jnp.asarray(x, dtype) if narrow else x

    return jax.tree_util.tree_map_with_path(cast, params)
