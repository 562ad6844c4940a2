"""What a model needs of each device's memory, and what a budget of computing buys: before any device is paid for.

  python -m sew_jax.main --config=configs/plan.py:xlsr_1b --config.devices=64 --config.memory_gib=80
  python -m sew_jax.main --config=configs/plan.py:base --config.machine=v5e-16
  python -m sew_jax.main --config=configs/plan.py --config.flop=1e18 --config.hours=960
  python -m sew_jax.main --config=configs/plan.py:slim_200 --config.device_hours=24 --config.machine=rtx3090 \\
    --config.pretrain.data=/data/LibriSpeech --config.pretrain.split=train-clean-100

Arguments as those of pretrain.py. Without a budget it prints, from shapes alone and in seconds, the parameters and
moments that a device holds for each `mesh.fsdp`, what a forward pass leaves for the backward pass for each `remat`,
and the flags of the first combination that fits. Where `machine` names a slice of TPUs and libtpu is installed, its
compiler is asked whether that fits, else about the next one, for minutes a program where the model is large.
With one (`flop`, `device_hours` or `kwh`) it prints how many updates and epochs of the data that is for each size,
which settings to train, on which machine it takes how long and how much energy, and the flags of one size. Sizes have
their own recipes; keys of `pretrain` are those of the size that is named.
"""

from ml_collections import ConfigDict

from configs import pretrain


def get_config(arguments: str = "base") -> ConfigDict:
    config = ConfigDict()
    config.mode = "plan"
    config.pretrain = pretrain.get_config(arguments)
    config.size = pretrain.size_of(arguments)
    config.devices = 8
    config.memory_gib = 16.0  # of each: v5e 16, v6e 32, A100 40 or 80, H100 80

    # A budget, by one of these; 0: none, and memory is planned
    config.flop = 0.0
    config.device_hours = 0.0  # of `machine`, all devices together
    config.kwh = 0.0  # taken by `machine`
    # A name of sew_jax/machines.py; a slice (v5e-16, v6e-8, v5p-8 of 4 chips, h100x8) sets devices and memory_gib, too
    config.machine = "a100"
    config.programs = "three"  # to compile for it: none, the largest, three (and the median and the smallest) or all
    config.utilization = 0.3  # the part of a device's promised speed that training reaches
    config.price = 0.0  # of a device hour of `machine`, in whatever money; 0: none is said
    config.hours = 0.0  # of audio to train on; 0: those of pretrain.data, which is opened
    return config
