#!/usr/bin/env bash
# TPU slices or GPU nodes of a GKE cluster by xpk: one pod a host, all started again when one is lost (see --help).
# EXPERIMENTAL: tests run it against programs that only note their calls; it has not yet run in a cloud.
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'END'
usage: launch/gke.sh COMMAND [NAME] --cluster=CLUSTER --zone=ZONE [OPTIONS] [--dry-run] [-- ARGUMENTS of sew_jax.main]

  EXPERIMENTAL: has not yet run in a cloud; look at --dry-run first.

  create-cluster  a cluster with its accelerators, which COSTS until it is deleted, and the bucket as its shared storage
  run NAME        puts this repository into an image and starts a workload; the same command again continues a stopped one
  list            the workloads
  logs NAME       follows the output of the first host
  delete NAME     lets the workload save and ends it, and removes its secret; the cluster stays, and costs
  delete-cluster  the cluster and all on it; the bucket stays

  --zone=ZONE        such as us-east5-b; --project=PROJECT if not gcloud's
  --type=v6e-8       TPU slices (v6e-16, v5litepod-16, v5p-16, tpu7x-8, ...) or GPU nodes (h100-80gb-8, h200-141gb-8, ...)
  --count=1          slices, or GPU nodes
  --cpu-nodes=1      nodes (e2-standard-16) for the cluster's own work; more come if it needs them
  --on-demand        full price and not taken away; by default spot: cheaper, and taken away at any time
  --bucket=BUCKET    of create-cluster: the storage that all hosts see at --mount (/mnt/sew_jax), where the workdir must lie
  --image=IMAGE      used as it is: Python 3.11 or newer, with this repository as working directory. By default one is built
                     upon --base-image=python:3.12 and pushed by docker, and its packages are installed at each start
  --restarts=N       restarts of a lost or crashed workload (50); a mistake in the arguments (status 2) ends it;
                     status 75 (storage does not answer) starts it again in its pod, uncounted
  --grace=SECONDS    to save in after a request to stop (120). A spot host has 15 s, whatever is written here, unless its node
                     pool allows more; what was done since the last checkpoint is then done again
  --env-file=PATH    of lines NAME=VALUE on this machine: they become a Kubernetes secret, which only the workload's pods are
                     given, as their environment
  --dry-run          prints the commands and runs none

The config is configs/pretrain.py:base and the workdir PATH/NAME unless given. Data may be gs://, which is read without a
mount. Paths are the pods'. What is secret (HF_TOKEN=... for a checkpoint by name) goes into the file of --env-file; nothing of
your environment is passed on.

  launch/gke.sh create-cluster --cluster=speech --zone=us-east5-b --type=v6e-16 --bucket=my-bucket
  launch/gke.sh run base --cluster=speech --zone=us-east5-b --type=v6e-16 -- --config.data=gs://my-bucket/librispeech
  launch/gke.sh logs base --cluster=speech --zone=us-east5-b
  launch/gke.sh delete-cluster --cluster=speech --zone=us-east5-b
END
}

create_cluster() {
  [[ $bucket ]] || fail "--bucket is missing; write --bucket=BUCKET, which all hosts will share"
  local price=--spot
  [[ ! $on_demand ]] || price=--on-demand
  say "cluster $cluster in $zone: $count x $type, ${price#--}, and $cpu_nodes CPU node(s) e2-standard-16." \
    "It costs until: launch/gke.sh delete-cluster ${place[*]}"
  run xpk cluster create "${place[@]}" --device-type="$type" "$many=$count" "$price" \
    --default-pool-cpu-machine-type=e2-standard-16 --default-pool-cpu-num-nodes="$cpu_nodes" --enable-gcsfuse-csi-driver
  # a checkpoint is finished by renaming its folder, which a bucket must be allowed to do file by file; and what one host has
  # written the others must see at once, so nothing is remembered about files
  local options=implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
  run xpk storage attach sew-jax "${place[@]}" --type=gcsfuse --bucket="${bucket#gs://}" --size=1 --mount-point="$mount" \
    --readonly=false --auto-mount=true --mount-options="$options"
}

credentials() {
  need kubectl "install it: gcloud components install kubectl"
  run gcloud container clusters get-credentials "$cluster" --location="${zone%-*}" ${project:+"--project=$project"}
}

# What `make_secret` makes, gone where it is there
delete_secret() { run kubectl delete --ignore-not-found "secret/$secret" "role/$secret" "rolebinding/$secret"; }

# The secret, and leave for the accounts that xpk's pods have (with storage, and without) to read this one alone
make_secret() {
  [[ $dry_run || -r $env_file ]] || fail "--env-file=$env_file cannot be read"
  credentials
  delete_secret
  run kubectl create secret generic "$secret" --from-env-file="$env_file"
  run kubectl create role "$secret" --verb=get --resource=secrets --resource-name="$secret"
  run kubectl create rolebinding "$secret" --role="$secret" --serviceaccount=default:xpk-sa --serviceaccount=default:default
}

run_workload() {
  [[ ! $env_file ]] || make_secret
  local source=(--docker-image="$image") context=runs/.image inside
  if [[ ! $image ]]; then
    need docker "install Docker, which xpk builds the image with, or name one with --image=IMAGE"
    # a folder of the code alone: neither .git nor the runs belong into an image
    run rm -rf "$context"
    run mkdir -p "$context"
    run cp -R sew_jax configs launch requirements.txt "$context"
    source=(--base-docker-image="$base_image" --script-dir="$root/$context")
  fi
  # exec: the shell that xpk starts passes SIGTERM to this process alone
  inside="exec bash launch/gke.sh $(quote in-pod "$name" --type="$type" ${env_file:+"--secret=$secret"} -- "${arguments[@]}")"
  [[ $type == v* || $type == tpu* || $inside != *[\"\\]* ]] || fail "xpk can't pass quotes and backslashes to GPU nodes: $inside"
  # 1 is a crash; a preemption (42, see in_pod) and death by a signal restart anyway, 0 and 2 never
  run xpk workload create "${place[@]}" --workload="$name" --device-type="$type" "$many=$count" "${source[@]}" \
    --max-restarts="$restarts" --restart-on-exit-codes=1 --termination-grace-period-seconds="$grace" --command="$inside"
}

# In a pod, from the repository. sew_jax ends with 0 when it was asked to stop, which Kubernetes would take for done.
in_pod() {
  local platform=tpu packages=("jax[tpu]" gcsfs) status=0
  [[ $type == v* || $type == tpu* ]] || platform=cuda packages=("jax[cuda13]" gcsfs)
  if [[ $secret ]]; then
    local variable
    while IFS= read -r -d '' variable; do export "${variable?}"; done < <(python3 launch/pod_secret.py "$secret")
    wait $! || return 1 # a crash, after which all pods start again: the cluster may answer then
  fi
  if [[ ${NNODES-} ]]; then # xpk's words for GPU nodes
    arguments+=(--coordinator_address="$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT" --num_processes="$NNODES" \
      --process_id="$NODE_RANK")
  fi
  run python3 -m pip install --quiet --root-user-action=ignore --constraint=launch/constraints.txt \
    --requirement=requirements.txt "${packages[@]}"
  keep_running 0 10 env JAX_PLATFORMS="$platform,cpu" python3 -m sew_jax.main "${arguments[@]}" || status=$?
  [[ ! $stop_asked ]] || ((status != 0)) || status=42
  return "$status"
}

delete() {
  run xpk workload delete "${place[@]}" --workload="$name"
  credentials
  delete_secret
}

logs() {
  credentials
  run kubectl logs --follow --tail=200 \
    --selector="xpk.google.com/workload=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

cluster='' zone='' project='' type=v6e-8 count=1 cpu_nodes=1 on_demand='' bucket='' mount=/mnt/sew_jax image=''
base_image=python:3.12 restarts=50 grace=120 env_file='' secret=''
parse "cluster= zone= project= type= count= cpu-nodes= on-demand bucket= mount= image= base-image= restarts= grace= env-file= secret=" \
  "$@"
command=${words[0]-} name=${words[1]-} many=--num-nodes
[[ $command == in-pod ]] || secret=sew-jax-$name
[[ $command ]] || misused
((${#words[@]} <= 2)) || fail "'${words[2]}' is not understood; what is for sew_jax follows after --"
[[ $type != v* && $type != tpu* ]] || many=--num-slices
place=(--cluster="$cluster" --zone="$zone" ${project:+"--project=$project"})
case $command in
  run | logs | delete | in-pod) [[ $name ]] || misused ;;
  create-cluster | list | delete-cluster) [[ ! $name ]] || fail "'$name' is not understood; the cluster is --cluster=$name" ;;
  *) fail "'$command' is no command of launch/gke.sh; see --help" ;;
esac
if [[ $command == run ]]; then
  ((${#arguments[@]})) || misused
  default_argument --workdir="$mount/$name"
  default_argument --config=configs/pretrain.py:base
fi
if [[ $command != in-pod ]]; then
  [[ $cluster && $zone ]] || fail "--cluster and --zone are needed; write --cluster=NAME --zone=ZONE"
  need xpk "install it: python3 -m pip install xpk"
  need gcloud "install the Google Cloud CLI (cloud.google.com/sdk) and run: gcloud auth login"
fi
case $command in
  create-cluster) create_cluster ;;
  run) run_workload ;;
  list) run xpk workload list "${place[@]}" ;;
  logs) logs ;;
  delete) delete ;;
  delete-cluster) run xpk cluster delete "${place[@]}" ;;
  in-pod) in_pod ;;
esac
