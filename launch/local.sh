#!/usr/bin/env bash
# This machine: a virtual environment if there is none, then any config (see --help).
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'END'
usage: launch/local.sh [--python=python3] [--extra=cuda13|cuda12|tpu] [--dry-run] [-- ARGUMENTS of sew_jax.main]

Makes .venv in the repository if there is none, installs sew_jax's requirements, and runs a config there. Without arguments it
runs the demo: --config=configs/demo.py. Where storage does not answer (status 75) it is started again. Paths are relative to
the repository.

  --python=PROGRAM   Python 3.11 or newer that .venv is made with
  --extra=NAME       the accelerator JAX is installed for (none: the CPU alone)
  --dry-run          prints the commands and runs none

A secret (HF_TOKEN for a checkpoint by name) is taken from the environment.

  launch/local.sh
  launch/local.sh -- --config=configs/pretrain.py:sew_tiny --config.data=/data/LibriSpeech --config.split=train-clean-100
END
}

python=python3 extra=''
parse "python= extra=" "$@"
((${#words[@]} == 0)) || fail "'${words[0]}' is not understood; what is for sew_jax follows after --"
default_argument --config=configs/demo.py

environment "$python" "jax${extra:+[$extra]}"
keep_running 0 10 .venv/bin/python -m sew_jax.main "${arguments[@]}"
