#!/usr/bin/env bash
# A job of one or more GPU nodes under Slurm, which it submits itself (see --help).
here=$(dirname "$0")
[[ -e $here/common.sh ]] || here=launch # Slurm runs a copy of this file, in the repository
source "$here/common.sh"

usage() {
  cat <<'END'
usage: launch/slurm.sh [--nodes=1] [--gpus=8] [--time=24:00:00] [OPTIONS] [--dry-run] -- ARGUMENTS of sew_jax.main

Makes .venv with jax[cuda13] if there is none (run this where packages can be had), and submits a job by sbatch: one process a
GPU, as JAX expects under Slurm; they find each other without arguments. The repository, the data and the workdir must lie on a
file system that all nodes share. The config is configs/pretrain.py:base unless given. Paths are relative to the repository.

Before the time is up the run saves, and the job is queued again until it is done; so it is after a node failed, or was taken for
another job. A crash restarts the run in place. scancel lets the run save, and ends the job.

  --nodes=N          nodes
  --gpus=N           GPUs of each node, and so processes
  --cpus=N           CPU cores for each GPU (8)
  --time=LIMIT       of one turn in the queue
  --notice=SECONDS   so long before the limit the run is asked to save (120)
  --partition=NAME   --account=NAME; other options by Slurm's variables: SBATCH_QOS, SBATCH_CONSTRAINT, SBATCH_MEM_PER_NODE, ...
  --restarts=N       restarts in place after a crash (3); after status 75 (storage does not answer) it always restarts
  --cuda=13|12       CUDA that JAX is installed for; 12 for older drivers
  --python=PROGRAM   Python 3.11 or newer that .venv is made with
  --dry-run          prints the commands and runs none

A secret (HF_TOKEN for a checkpoint by name) is taken from the environment, which Slurm passes on.
The output is in slurm-JOB.log; it is followed by `tail -F slurm-JOB.log`.

  launch/slurm.sh --nodes=4 --partition=gpu -- --config.data=/data/LibriSpeech --config.split=train-clean-100 --workdir=runs/base
END
}

# On the first node of the job, from the repository
in_job() {
  local queue_again='' status=0
  trap 'stop_asked=1 interrupted=1' TERM # scancel or preemption: Slurm has told the processes, too
  trap 'queue_again=1; ask_to_stop' USR1 # the time is nearly up: srun passes SIGTERM on to all processes
  # a process that fails says why, and the others end within a minute and say so; srun need not kill them
  keep_running "$restarts" 10 srun --kill-on-bad-exit=0 --cpus-per-task="$cpus" \
    env JAX_PLATFORMS=cuda,cpu .venv/bin/python -m sew_jax.main "${arguments[@]}" || status=$?
  if [[ $queue_again ]] && ((status != 2)); then
    run scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}

nodes=1 gpus=8 cpus=8 time=24:00:00 notice=120 partition='' account='' restarts=3 cuda=13 python=python3
parse "nodes= gpus= cpus= time= notice= partition= account= restarts= cuda= python=" "$@"
((${#arguments[@]})) || misused
default_argument --config=configs/pretrain.py:base
case ${words[*]-} in
  in-job) in_job ;;
  '')
    need sbatch "run this on a login node of a Slurm cluster, or use launch/gpu_box.sh"
    environment "$python" "jax[cuda$cuda]"
    # all GPUs of a node are visible to each of its processes, and JAX takes the one of its local number: so no --gpus-per-task.
    # USR1 to this script alone (B:) means the end of the time; SIGTERM to all would look like scancel.
    run sbatch --job-name=sew_jax --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus" \
      --cpus-per-task="$cpus" --time="$time" --requeue --signal="B:USR1@$notice" --open-mode=append \
      --output=slurm-%j.log --chdir="$root" ${partition:+"--partition=$partition"} ${account:+"--account=$account"} \
      "$root/launch/slurm.sh" in-job --cpus="$cpus" --restarts="$restarts" -- "${arguments[@]}"
    ;;
  *) fail "'${words[0]}' is not understood; what is for sew_jax follows after --" ;;
esac
