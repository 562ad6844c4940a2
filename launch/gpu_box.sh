#!/usr/bin/env bash
# One machine with NVIDIA GPUs: one process for all of them, restarted after a crash (see --help).
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'END'
usage: launch/gpu_box.sh [--cuda=13] [--restarts=3] [--delay=10] [--python=python3] [--dry-run] -- ARGUMENTS of sew_jax.main

Makes .venv with jax[cuda13] if there is none, and runs one process on all GPUs of this machine (CUDA_VISIBLE_DEVICES takes
fewer). After a crash it goes on from the last checkpoint, as it does, however often, where storage does not answer (status
75); a mistake in the arguments (status 2) ends it. SIGTERM and Ctrl-C let the run finish its update and save. The config is
configs/pretrain.py:base unless given. Paths are relative to the repository.

  --cuda=13|12       CUDA that JAX is installed for; 12 for older drivers
  --restarts=N       after so many crashes it gives up; status 75 does not count
  --delay=SECONDS    between a crash and the restart
  --python=PROGRAM   Python 3.11 or newer that .venv is made with
  --dry-run          prints the commands and runs none

A secret (HF_TOKEN for a checkpoint by name) is taken from the environment. A long run is best started in tmux.

  launch/gpu_box.sh -- --config.data=/data/LibriSpeech --config.split=train-clean-100 --workdir=runs/base --config.accumulate=8
END
}

cuda=13 restarts=3 delay=10 python=python3
parse "cuda= restarts= delay= python=" "$@"
((${#words[@]} == 0)) || fail "'${words[0]}' is not understood; what is for sew_jax follows after --"
((${#arguments[@]})) || misused
default_argument --config=configs/pretrain.py:base

need nvidia-smi "install NVIDIA's driver (it comes with it), or use launch/local.sh on a machine without GPUs"
environment "$python" "jax[cuda$cuda]"
# named, so that a GPU that JAX can't use is an error, and not a run on the CPU
keep_running "$restarts" "$delay" env JAX_PLATFORMS=cuda,cpu .venv/bin/python -m sew_jax.main "${arguments[@]}"
