# shellcheck shell=bash
# Functions of all launchers: errors in one line, and running or only printing a command.

DRY_RUN=${DRY_RUN:-0} # 1, or the flag --dry-run: print the commands, run none

fail() {
  echo "error: $*" >&2
  exit 2
}

# Quotes an argument for a shell, where it needs it.
quoted() {
  if [[ $1 =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
    printf '%s' "$1"
  else
    printf "'%s'" "${1//\'/\'\\\'\'}"
  fi
}

# The arguments as one line that a shell reads back.
joined() {
  local line='' argument
  for argument in "$@"; do
    line+="${line:+ }$(quoted "$argument")"
  done
  printf '%s' "$line"
}

# Prints a command, and runs it unless this is a dry run.
run() {
  echo "+ $(joined "$@")"
  [[ $DRY_RUN == 1 ]] || "$@"
}

# `require NAME MEANING`: stops unless the variable NAME is set and not empty.
require() {
  [[ -n ${!1:-} ]] || fail "$1 is not set; wanted $2; set it in the environment"
}

# Takes --dry-run out of the arguments; what remains is in ARGUMENTS.
ARGUMENTS=()
take_flags() {
  local argument
  for argument in "$@"; do
    case $argument in
      --dry-run) DRY_RUN=1 ;;
      -*) fail "unknown flag $argument; known: --dry-run" ;;
      *) ARGUMENTS+=("$argument") ;;
    esac
  done
}
