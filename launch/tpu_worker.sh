#!/usr/bin/env bash
# The part of launch/tpu_pod.sh that runs on every host of a slice:
# launch/tpu_worker.sh install|train|work|stop [--dry-run] [TRAINING FLAGS].
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
repository=$(dirname "$here")

NFS_SHARE=${NFS_SHARE:-} # HOST:/PATH mounted at MOUNT_POINT; empty: none
MOUNT_POINT=${MOUNT_POINT:-/mnt/infinity}
PYTHON=${PYTHON:-3.12}
UNIT=infinity-jax # systemd stops it with SIGTERM when the machine goes down, the network still up
METADATA=http://metadata.google.internal/computeMetadata/v1/instance

install() {
  if [[ -n $NFS_SHARE ]]; then
    # Just after a start the machine updates itself, and holds the lock.
    run sudo apt-get -o DPkg::Lock::Timeout=300 install --yes nfs-common
    run sudo mkdir -p "$MOUNT_POINT"
    mountpoint --quiet "$MOUNT_POINT" || run sudo mount -t nfs "$NFS_SHARE" "$MOUNT_POINT"
    run sudo chmod a+rwx "$MOUNT_POINT"
  fi
  # The image's own Python is too old.
  run python3 -m pip install --user --quiet uv
  run "$HOME/.local/bin/uv" venv --clear --python "$PYTHON" "$repository/.venv"
  run "$HOME/.local/bin/uv" pip install --python "$repository/.venv/bin/python" \
    "${repository}[tpu]"
}

# After a crash or the death of another host, all start again; not after an error of the user.
train() {
  run sudo systemd-run --unit="$UNIT" --collect --uid="$(id -u)" --gid="$(id -g)" \
    --working-directory="$repository" --setenv=HOME="$HOME" \
    --property=KillMode=mixed --property=TimeoutStopSec=90 \
    --property=SuccessExitStatus=143 --property=RestartPreventExitStatus=2 \
    --property=Restart=on-failure --property=RestartSec=10 \
    --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=5 \
    bash "$here/tpu_worker.sh" work "$@"
}

# The unit itself: training, and in the background a watch for notices.
work() {
  if [[ $DRY_RUN != 1 ]]; then
    pass_on_notice $$ &
  fi
  run exec "$repository/.venv/bin/infinity-jax" train "$@"
}

# Waits until the machine is to be maintained or taken away; then sends SIGTERM to the process $1.
pass_on_notice() {
  local key value
  while sleep 5; do
    for key in maintenance-event preempted; do
      value=$(curl --silent --fail --header 'Metadata-Flavor: Google' "$METADATA/$key" || true)
      case $value in
        TERMINATE_ON_HOST_MAINTENANCE | TRUE)
          echo "notice: $key is $value"
          kill -TERM "$1"
          return
          ;;
      esac
    done
  done
}

action=${1:-}
shift || true
if [[ ${1:-} == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
case $action in
  install) install ;;
  train) train "$@" ;;
  work) work "$@" ;;
  stop) run sudo systemctl stop "$UNIT" ;;
  *) fail 'usage: launch/tpu_worker.sh install|train|work|stop [--dry-run] [TRAINING FLAGS]' ;;
esac
