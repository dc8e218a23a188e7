#!/usr/bin/env bash
# Training on a Cloud TPU slice: launch/tpu_pod.sh ACTION [--dry-run]; see launch/tpu_pod.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

PROJECT=${PROJECT:-}                     # Google Cloud project
ZONE=${ZONE:-us-west4-a}                 # where the TPUs are
NAME=${NAME:-infinity}                   # of the queued resource and its slice
ACCELERATOR=${ACCELERATOR:-v5litepod-16} # v4-32, v5litepod-256, v5p-128, v6e-64, …
RUNTIME=${RUNTIME:-}                     # TPU software version; empty: by generation
SPOT=${SPOT:-0}                          # 1: cheap, and taken away at any time
NFS_SHARE=${NFS_SHARE:-}                 # HOST:/PATH that all hosts mount, such as Filestore
RUN_DIR=${RUN_DIR:-/mnt/infinity/runs/$NAME}
CONFIG=${CONFIG:-configs/t2i.py}
TRAIN_FLAGS=${TRAIN_FLAGS:-} # more flags, such as --config.mesh.fsdp=16
WORKER=${WORKER:-0}          # host whose log is shown

usage='usage: launch/tpu_pod.sh create|status|wait|install|train|resume|logs|stop|delete'

runtime() {
  case ${RUNTIME:-$ACCELERATOR} in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) [[ -n $RUNTIME ]] && echo "$RUNTIME" ;;
  esac
}

queued() {
  local action=$1
  shift
  run gcloud compute tpus queued-resources "$action" "$NAME" \
    --project="$PROJECT" --zone="$ZONE" "$@"
}

# Runs a command on the given host or hosts.
on_worker() {
  run gcloud compute tpus tpu-vm ssh "$NAME" \
    --project="$PROJECT" --zone="$ZONE" --worker="$1" --command="$2"
}

create() {
  local version options=()
  version=$(runtime) || fail "no runtime version known for ACCELERATOR $ACCELERATOR; set RUNTIME"
  [[ $SPOT == 1 ]] && options+=(--spot)
  queued create --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
    --runtime-version="$version" ${options[@]+"${options[@]}"}
}

install() {
  local archive=${TMPDIR:-/tmp}/infinity_jax.tar.gz
  run git -C "$(dirname "$here")" archive --format=tar.gz --prefix=infinity_jax/ \
    --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:infinity_jax.tar.gz" \
    --project="$PROJECT" --zone="$ZONE" --worker=all
  on_worker all "tar xzf infinity_jax.tar.gz && \
$(joined env "NFS_SHARE=$NFS_SHARE" bash infinity_jax/launch/tpu_worker.sh install)"
}

# Every host runs the same command; JAX finds the others.
train() {
  local flags
  read -ra flags <<<"$TRAIN_FLAGS"
  on_worker all "$(joined bash infinity_jax/launch/tpu_worker.sh train \
    "--config=$CONFIG" "--config.run_dir=$RUN_DIR" ${flags[@]+"${flags[@]}"})"
}

state() {
  queued describe '--format=value(state.state)'
}

# Waits for the slice, which may take minutes or days.
wait_until_active() {
  local now=''
  if [[ $DRY_RUN == 1 ]]; then
    state
    return
  fi
  until [[ $now == ACTIVE ]]; do
    now=$(state | tail -n 1)
    echo "$NAME is $now"
    case $now in
      ACTIVE) ;;
      FAILED | SUSPENDED) fail "$NAME is $now; delete it, or resume to ask again" ;;
      *) sleep 30 ;;
    esac
  done
}

# A slice that was taken away is gone with its disks: everything again, up to the same training
# command, which goes on from the last checkpoint on the share.
resume() {
  local now=''
  if [[ $DRY_RUN == 1 ]]; then
    state
  else
    now=$(state | tail -n 1) || echo "$NAME is not there any more"
  fi
  [[ $now != ACTIVE ]] ||
    fail "$NAME is ACTIVE, and resume would delete it; to go on there: install, then train"
  if [[ $DRY_RUN == 1 || $now =~ ^[A-Z_]+$ ]]; then
    queued delete --force --quiet
  fi
  create
  wait_until_active
  install
  train
}

take_flags "$@"
require PROJECT 'a Google Cloud project'
case ${ARGUMENTS[*]:-} in
  create) create ;;
  status) state ;;
  wait) wait_until_active ;;
  install) install ;;
  train) train ;;
  resume) resume ;;
  logs) on_worker "$WORKER" 'sudo journalctl --unit=infinity-jax --lines=100 --follow' ;;
  stop) on_worker all 'bash infinity_jax/launch/tpu_worker.sh stop' ;;
  delete) queued delete --force --quiet ;;
  *) fail "$usage" ;;
esac
