"""What a model needs of each device's memory, before any device is paid for: from shapes alone, in seconds.

  python -m sew_jax.main --config=configs/plan.py:xlsr_1b --config.devices=64 --config.memory_gib=80

Arguments as those of pretrain.py. Prints the parameters and moments that a device holds for each `mesh.fsdp`, what a
forward pass leaves for the backward pass for each `remat`, and the flags of the first combination that fits.
"""

from ml_collections import ConfigDict

from configs import pretrain


def get_config(arguments: str = "base") -> ConfigDict:
    config = ConfigDict()
    config.mode = "plan"
    config.pretrain = pretrain.get_config(arguments)
    config.devices = 8
    config.memory_gib = 16.0  # of each: v5e 16, v6e 32, A100 40 or 80, H100 80
    return config
