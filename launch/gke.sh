#!/usr/bin/env bash
# Training on TPU slices of a GKE cluster: launch/gke.sh ACTION [--dry-run]; see launch/gke.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

NAME=${NAME:-infinity}                             # of the JobSet
NAMESPACE=${NAMESPACE:-default}                    # where it runs
IMAGE=${IMAGE:-}                                   # container with infinity_jax[tpu] installed
CLAIM=${CLAIM:-}                                   # ReadWriteMany volume claim, such as Filestore
RUN_DIR=${RUN_DIR:-/mnt/infinity/runs/$NAME}       # on that volume
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice}   # tpu-v4-podslice, tpu-v5p-slice, tpu-v6e-slice
TOPOLOGY=${TOPOLOGY:-4x4}                          # chips of a slice
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}                # of the node pool's machine type
SLICES=${SLICES:-1}                                # more: data over slices, fsdp inside
SPOT=${SPOT:-0}                                    # 1: nodes that may be taken away
MAX_RESTARTS=${MAX_RESTARTS:-100}                  # preemptions and deaths until giving up
CONFIG=${CONFIG:-configs/t2i.py}                   # inside the container's working folder
TRAIN_FLAGS=${TRAIN_FLAGS:-}                       # more flags, such as --config.mesh.fsdp=16

usage='usage: launch/gke.sh render|start|status|logs|stop|resume|delete [--dry-run]'

# Hosts of a slice: the chips of its topology over those of a host.
hosts() {
  local size chips=1
  for size in ${TOPOLOGY//x/ }; do
    chips=$((chips * size))
  done
  ((chips % CHIPS_PER_HOST == 0)) ||
    fail "TOPOLOGY $TOPOLOGY has $chips chips; wanted a multiple of CHIPS_PER_HOST $CHIPS_PER_HOST"
  echo $((chips / CHIPS_PER_HOST))
}

# `fill NAME VALUE`: puts VALUE in place of ${NAME} in the manifest.
fill() {
  manifest=${manifest//"\${$1}"/"$2"}
}

# Prints the manifest for the variables above.
render() {
  local command count manifest name flags
  require IMAGE 'a container image'
  require CLAIM 'a ReadWriteMany persistent volume claim'
  count=$(hosts)
  read -ra flags <<<"$TRAIN_FLAGS"
  command=$(joined infinity-jax train "--config=$CONFIG" "--config.run_dir=$RUN_DIR" \
    ${flags[@]+"${flags[@]}"})
  manifest=$(<"$here/gke_jobset.yaml")
  [[ $SPOT == 1 ]] || manifest=$(grep --invert-match 'gke-spot:' <<<"$manifest")
  for name in NAME NAMESPACE IMAGE CLAIM ACCELERATOR TOPOLOGY CHIPS_PER_HOST SLICES MAX_RESTARTS; do
    fill "$name" "${!name}"
  done
  fill HOSTS "$count"
  fill COMMAND "$command"
  printf '%s\n' "$manifest"
}

kube() {
  run kubectl --namespace="$NAMESPACE" "$@"
}

start() {
  local manifest
  manifest=$(render)
  [[ $DRY_RUN != 1 ]] || printf '%s\n' "$manifest"
  kube apply --filename=- <<<"$manifest"
}

take_flags "$@"
case ${ARGUMENTS[*]:-} in
  render) render ;;
  start) start ;;
  status)
    kube get jobset "$NAME"
    kube get pods --output=wide --selector="jobset.sigs.k8s.io/jobset-name=$NAME"
    ;;
  logs)
    kube logs --follow --tail=100 --selector="\
jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  stop) kube patch jobset "$NAME" --type=merge '--patch={"spec":{"suspend":true}}' ;;
  resume) kube patch jobset "$NAME" --type=merge '--patch={"spec":{"suspend":false}}' ;;
  delete) kube delete jobset "$NAME" ;;
  *) fail "$usage" ;;
esac
