#!/usr/bin/env bash
# A slice of TPU VMs by gcloud: all hosts run the same command and find each other (see --help).
# EXPERIMENTAL: tests run it against programs that only note their calls; it has not yet run in a cloud.
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh COMMAND NAME --zone=ZONE [OPTIONS] [--dry-run] [-- ARGUMENTS of sew_jax.main]

  EXPERIMENTAL: has not yet run in a cloud; look at --dry-run first.

  create   asks for one slice (a queued resource), which COSTS from when it is ACTIVE until it is deleted
  setup    waits for it; on all hosts: copies this repository, installs it with jax[tpu], mounts the shared storage
  run      starts the run as a service on all hosts and follows its output; Ctrl-C leaves the output, not the run
  resume   after a preemption: deletes and creates the slice where it was taken away, then setup and run
  logs     follows the output of the first host
  stop     lets the run save and end; the slice stays, and costs
  status   the slice's state, and whether the run is active on each host
  delete   the slice and all on it; the shared storage stays

  --zone=ZONE        such as us-east5-b; --project=PROJECT if not gcloud's
  --type=v6e-8       accelerator type; one of several hosts is v6e-16, v5litepod-16, v5p-16, ...
  --runtime=VERSION  software of the VMs; by default that which fits the type
  --on-demand        full price and not taken away; by default the slice is spot: cheaper, and taken away at any time
  --shared=STORAGE   gs://BUCKET[/FOLDER], or HOST:/SHARE of a file server such as Filestore (surer for checkpoints); setup, run
                     and resume need it, since all hosts write into one workdir and a slice's own disks go with it
  --mount=PATH       where the storage appears on the hosts (/mnt/sew_jax)
  --restarts=N       restarts of a crashed run within a day (3); a mistake in the arguments (status 2) ends it;
                     status 75 (storage does not answer) counts too, each after ten minutes of waiting
  --dry-run          prints the commands and runs none (resume: as after a preemption)

The config is configs/pretrain.py:base and the workdir PATH/NAME unless given. Data may be gs://, which is read
without the mount. Paths are the hosts'. TPU7x is not offered as TPU VMs: see launch/gke.sh. gcloud reaches several hosts only
with its key in the agent: ssh-add ~/.ssh/google_compute_engine. A secret (HF_TOKEN=... for a checkpoint by name) goes into
~/sew_jax.env of each host, for its owner alone (chmod 600).

  launch/tpu_vm.sh create pod --zone=us-east5-b --type=v6e-16
  launch/tpu_vm.sh setup pod --zone=us-east5-b --shared=gs://my-bucket
  launch/tpu_vm.sh run pod --zone=us-east5-b --shared=gs://my-bucket -- --config.data=gs://my-bucket/librispeech
  launch/tpu_vm.sh delete pod --zone=us-east5-b
END
}

tpus() { run gcloud compute tpus "$@" "${place[@]}"; }

# on all|0 COMMAND: the command of one string, as the hosts' shell reads it
on() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }

# on_hosts SUB-COMMAND: this script on all hosts, from the copy that setup made
on_hosts() {
  on all "cd sew_jax && bash launch/tpu_vm.sh $(quote "$1" "$name" --shared="$shared" --mount="$mount" \
    --restarts="$restarts" -- ${arguments[@]+"${arguments[@]}"})"
}

create() {
  case $type in
    v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
    v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
    v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
    v[234]-*) runtime=${runtime:-tpu-ubuntu2204-base} ;;
    *) [[ $runtime ]] || fail "--type=$type has no known software version; name one with --runtime=VERSION" ;;
  esac
  local price=--spot
  [[ ! $on_demand ]] || price=''
  say "one slice of $type in $zone, ${price:+spot: it may be taken away at any time}${on_demand:+on demand: full price}." \
    "It costs until: launch/tpu_vm.sh delete $name ${place[*]}"
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    ${price:+"$price"}
}

delete() { tpus queued-resources delete "$name" --force --quiet; } # --force: its VMs, too

# The queued resource's state, or that of its VMs where these are gone though it is still ACTIVE
state() {
  local state
  state=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format="value(state.state)") || state=MISSING
  [[ $state != ACTIVE ]] || state=$(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format="value(state)")
  [[ $state != READY ]] || state=ACTIVE
  echo "$state"
}

wait_until_active() {
  if [[ $dry_run ]]; then
    tpus queued-resources describe "$name" --format="value(state.state)"
    return
  fi
  local now='' before=''
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in FAILED | SUSPEND* | PREEMPTED | TERMINATED | MISSING)
      fail "$name is $now; see launch/tpu_vm.sh create and resume" ;;
    esac
    [[ $now == "$before" ]] || say "$name is $now; waiting until it is ACTIVE (Ctrl-C ends the waiting, not the request)"
    before=$now
    sleep 30
  done
}

setup() {
  wait_until_active
  # what is copied is removed before, so that no file of an older state stays
  on all "mkdir -p sew_jax && cd sew_jax && rm -rf sew_jax configs launch"
  tpus tpu-vm scp --recurse --worker=all sew_jax configs launch requirements.txt "$name:sew_jax/"
  on_hosts on-host-setup
}

start() {
  on_hosts on-host-run
  logs
}

resume() {
  local now=SUSPENDED
  if [[ $dry_run ]]; then wait_until_active; else now=$(state); fi
  case $now in
    MISSING) create ;;
    FAILED | SUSPEND* | PREEMPTED | TERMINATED)
      delete
      create
      ;;
  esac
  setup
  start
}

logs() { on 0 "sudo journalctl --unit=sew_jax --lines=200 --follow --output=cat"; }

status() {
  tpus queued-resources describe "$name" --format="value(state.state)"
  on all "systemctl is-active sew_jax || true"
}

# On a host; does nothing where it was done
mount_shared() {
  [[ $dry_run ]] || ! mountpoint --quiet "$mount" || return 0
  run sudo mkdir -p "$mount"
  run sudo apt-get update --quiet
  if [[ $shared != gs://* ]]; then
    run sudo apt-get install --yes -o DPkg::Lock::Timeout=600 nfs-common
    run sudo mount -t nfs "$shared" "$mount"
    run sudo chmod a+rwx,+t "$mount" # as /tmp: programs are kept where others cannot replace them
    return
  fi
  local bucket=${shared#gs://} folder='' package=gcsfuse_3.8.0_amd64.deb
  [[ ${bucket%/} != */* ]] || folder=${bucket#*/}
  if ! command -v gcsfuse >/dev/null; then
    run curl -fsSL -o "/tmp/$package" "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v3.8.0/$package"
    run sudo apt-get install --yes -o DPkg::Lock::Timeout=600 "/tmp/$package"
  fi
  run sudo chown "$(id -un)" "$mount"
  # a checkpoint is finished by renaming its folder, which a bucket must be allowed to do file by file; and what one host has
  # written the others must see at once, so nothing is remembered about files
  # A service of its own, which outlives both the connection and the run. It is up when the bucket is mounted (forking), and
  # unmounts it when it is asked to end, as gcsfuse does at SIGINT.
  run sudo systemd-run --unit=sew_jax_mount --collect --uid="$(id -un)" --property=Type=forking --property=KillSignal=SIGINT \
    --property=Restart=on-failure --property=RestartSec=5 \
    -- gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    ${folder:+"--only-dir=$folder"} "${bucket%%/*}" "$mount"
}

on_host_setup() {
  # the VMs' own Python is older than 3.11; uv brings one
  run python3 -m pip install --quiet --user uv
  [[ -x .venv/bin/python ]] || run python3 -m uv venv --seed --python=3.12 .venv
  environment .venv/bin/python "jax[tpu]" gcsfs
  mount_shared
}

on_host_run() {
  mount_shared
  # A service outlives the connection, restarts after a crash, and gets SIGTERM when the VM is taken away: itself alone (mixed),
  # as its readers of audio leave that to it. $$ is systemd's way to write a dollar sign.
  run sudo systemd-run --unit=sew_jax --collect --uid="$(id -un)" --working-directory="$root" \
    --property=Restart=on-failure --property=RestartPreventExitStatus=2 --property=RestartSec=10 \
    --property=StartLimitIntervalSec=86400 --property=StartLimitBurst="$((restarts + 1))" \
    --property=KillMode=mixed --property=TimeoutStopSec=300 --property=LimitMEMLOCK=infinity \
    --property=RequiresMountsFor="$mount" \
    --property=EnvironmentFile=-"$HOME/sew_jax.env" --setenv=JAX_PLATFORMS=tpu,cpu \
    -- "$root/.venv/bin/python" -m sew_jax.main "${arguments[@]//\$/\$\$}"
}

zone='' project='' type=v6e-8 runtime='' on_demand='' shared='' mount=/mnt/sew_jax restarts=3
parse "zone= project= type= runtime= on-demand shared= mount= restarts=" "$@"
command=${words[0]-} name=${words[1]-} place=(--zone="$zone" ${project:+"--project=$project"})
[[ $command && $name ]] || misused
((${#words[@]} == 2)) || fail "'${words[2]}' is not understood; what is for sew_jax follows after --"
case $command in
  on-host-setup | on-host-run) ;;
  create | setup | run | resume | logs | stop | status | delete)
    [[ $zone ]] || fail "--zone is missing; write --zone=ZONE, such as us-east5-b"
    need gcloud "install the Google Cloud CLI (cloud.google.com/sdk) and run: gcloud auth login"
    ;;
  *) fail "'$command' is no command of launch/tpu_vm.sh; see --help" ;;
esac
case $command in setup | run | resume)
  [[ $shared == gs://* || $shared == *:/* ]] || fail "--shared=$shared is no storage; write --shared=gs://BUCKET or HOST:/SHARE"
  ;;
esac
case $command in run | resume | on-host-run)
  ((${#arguments[@]})) || misused
  default_argument --workdir="$mount/$name"
  default_argument --config=configs/pretrain.py:base
  ;;
esac
case $command in
  run) start ;;
  stop) on all "sudo systemctl stop sew_jax" ;;
  *) "${command//-/_}" ;;
esac
