#!/usr/bin/env bash
# Training on GPU nodes under SLURM: launch/slurm.sh ACTION [--dry-run]; see launch/slurm.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

NAME=${NAME:-infinity}          # of the job
NODES=${NODES:-2}               # machines
GPUS=${GPUS:-8}                 # per machine; one process per GPU
CPUS_PER_GPU=${CPUS_PER_GPU:-8} # for its data loading
TIME=${TIME:-24:00:00}          # limit of a job; SIGTERM comes NOTICE seconds earlier
NOTICE=${NOTICE:-120}
PARTITION=${PARTITION:-}           # empty: the cluster's default
ACCOUNT=${ACCOUNT:-}               # empty: yours
VENV=${VENV:-$HOME/infinity_venv}  # where infinity_jax[cuda13] is installed, seen by all nodes
RUN_DIR=${RUN_DIR:-$PWD/runs/$NAME} # seen by all nodes
CONFIG=${CONFIG:-configs/t2i.py}
TRAIN_FLAGS=${TRAIN_FLAGS:-} # more flags, such as --config.mesh.fsdp=16

usage='usage: launch/slurm.sh start|resume|status|logs|stop|delete [--dry-run]'

# The step: one process per GPU, which sees all GPUs of its node and takes the one of its number.
step() {
  local flags
  read -ra flags <<<"$TRAIN_FLAGS"
  joined env XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 \
    srun --label --gpu-bind=none --cpus-per-task="$CPUS_PER_GPU" --kill-on-bad-exit=0 \
    "$VENV/bin/infinity-jax" train "--config=$CONFIG" "--config.run_dir=$RUN_DIR" \
    ${flags[@]+"${flags[@]}"}
}

# Jobs of one name run one after the other: submit several, and each goes on where the last stopped.
start() {
  local options=()
  [[ -n $PARTITION ]] && options+=("--partition=$PARTITION")
  [[ -n $ACCOUNT ]] && options+=("--account=$ACCOUNT")
  run mkdir -p "$RUN_DIR"
  run sbatch --job-name="$NAME" --dependency=singleton --requeue \
    --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --cpus-per-task="$CPUS_PER_GPU" --time="$TIME" --signal="TERM@$NOTICE" \
    --open-mode=append --output="$RUN_DIR/slurm.log" --chdir="$PWD" \
    ${options[@]+"${options[@]}"} --wrap="$(step)"
}

take_flags "$@"
case ${ARGUMENTS[*]:-} in
  start | resume) start ;;
  status) run squeue --name="$NAME" --me ;;
  logs) run tail -n 100 -F "$RUN_DIR/slurm.log" ;;
  stop) run scancel --signal=TERM --name="$NAME" --me --state=RUNNING ;;
  delete) run scancel --name="$NAME" --me ;;
  *) fail "$usage" ;;
esac
