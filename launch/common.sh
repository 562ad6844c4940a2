# shellcheck shell=bash
# What the scripts beside this file share: their arguments, their commands, and what to do about a run that ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." # all commands are run in the repository
root=$PWD
dry_run='' shown='' words=() arguments=()
child='' interrupted='' stop_asked=''
LONGEST_PAUSE=900 # seconds between two starts
LONG_RUN=1800     # seconds after which a run has got on, wherever its checkpoints lie

fail() {
  echo "error: $*" >&2
  exit 2
}

say() { echo "$*" >&2; }

# misused: the usage on stderr, where an argument that is needed is missing
misused() {
  usage >&2
  exit 2
}

# parse "NAME= NAME" ARGUMENTS...: --NAME=VALUE sets the variable NAME, a bare --NAME sets it to 1; what follows -- goes to
# `arguments`, other words to `words`. --dry-run counts wherever it stands, since a run may cost money.
parse() {
  local known=" $1 " flag
  shift
  while (($#)); do
    flag=${1%%=*} flag=${flag#--}
    case $1 in
      --dry-run) dry_run=1 ;;
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        for flag; do
          if [[ $flag == --dry-run ]]; then dry_run=1; else arguments+=("$flag"); fi
        done
        break
        ;;
      --*=*)
        [[ $known == *" $flag= "* ]] || fail "--$flag is unknown; see --help (what is for sew_jax follows after --)"
        printf -v "${flag//-/_}" %s "${1#*=}"
        ;;
      -*)
        [[ $known != *" $flag= "* ]] || fail "$1 needs a value; write $1=VALUE"
        [[ $known == *" $flag "* ]] || fail "$1 is unknown; see --help (what is for sew_jax follows after --)"
        printf -v "${flag//-/_}" 1
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done
}

# default_argument --NAME=VALUE: puts it before the arguments for sew_jax, unless --NAME= is among them
default_argument() {
  local argument
  for argument in ${arguments[@]+"${arguments[@]}"}; do
    [[ $argument != "${1%%=*}"=* ]] || return 0
  done
  arguments=("$1" ${arguments[@]+"${arguments[@]}"})
}

# quote WORDS...: one line that any POSIX shell reads as these words (single quotes: xpk's YAML has no use for backslashes)
quote() {
  local word line='' apostrophe="'\\''"
  for word; do
    case $word in
      *[[:cntrl:]]*) printf -v word %q "$word" ;;
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$apostrophe}'" ;;
    esac
    line+=" $word"
  done
  printf '%s' "${line# }"
}

# A dry run's commands are all there is on stdout, and can be pasted; otherwise stdout belongs to the commands
show() {
  if [[ $dry_run ]]; then
    [[ $shown ]] || echo "+ $(quote cd "$root")"
    shown=1
    echo "+ $(quote "$@")"
  else
    say "+ $(quote "$@")"
  fi
}

run() {
  show "$@"
  [[ $dry_run ]] || "$@"
}

# need TOOL HINT
need() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || fail "$1 is missing; $2"
}

# environment PYTHON PACKAGES...: .venv with sew_jax's requirements and more; nothing to do where that was finished before
environment() {
  local python=$1 ready
  shift
  ready="$*" ready=.venv/installed-${ready//[^a-z0-9]/-}
  [[ $ready -nt requirements.txt && $ready -nt launch/constraints.txt ]] && return
  need "$python" "install Python 3.11 or newer, or name one with --python=PATH"
  [[ $dry_run ]] || "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is older than Python 3.11; name another one with --python=PATH"
  [[ -x .venv/bin/python || $python == .venv/bin/python ]] || run "$python" -m venv .venv
  run .venv/bin/python -m pip install --quiet --constraint=launch/constraints.txt --requirement=requirements.txt "$@"
  run touch "$ready"
}

ask_to_stop() {
  stop_asked=1 interrupted=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

# status_of COMMAND...: runs it to its end, whatever signals come meanwhile
status_of() {
  local status again
  "$@" &
  child=$!
  [[ ! $stop_asked ]] || ask_to_stop # it came before there was a child
  interrupted='' status=0
  wait "$child" || status=$?
  # above 128 it may be a signal that ended the waiting, and not the child
  while [[ $interrupted ]] && ((status > 128)); do
    interrupted='' again=0
    wait "$child" 2>/dev/null || again=$?
    # the child was waited for already: what it ended with is known
    ((again == 127 || again == 255)) || status=$again
  done
  child=''
  return "$status"
}

# checkpoints_of COMMAND...: those that its workdir holds; nothing of a bucket that is not mounted
checkpoints_of() {
  local argument config='' workdir=''
  for argument; do
    case $argument in
      --config=*) config=${argument#--config=} config=${config%%:*} config=${config##*/} ;;
      --workdir=*) workdir=${argument#--workdir=} ;;
    esac
  done
  workdir=${workdir:-runs/${config%.py}}
  # storage that hangs must not hang this, too; the modes that train in turn have workdirs below their own
  timeout 60 ls -d "$workdir"/checkpoints/[0-9]* "$workdir"/*/checkpoints/[0-9]* 2>/dev/null | grep -E '/[0-9]+$' || true
}

# keep_running RESTARTS DELAY COMMAND...: after a crash the command is run again, which goes on from the last checkpoint. Not
# after 0 (it is done, or was stopped and has saved), 2 (the user's mistake, which would only come again) or a request to stop,
# which is passed on as SIGTERM. 75 is no crash: storage or devices did not answer, for which the run has waited already; it is
# not counted, but where it comes again soon and without a new checkpoint the pause doubles, up to LONGEST_PAUSE. Where all
# checkpoints are gone their mount is away: begun there, a run would start from nothing.
keep_running() {
  local left=$1 delay=$2 status=0 pause=$2 times=0 saved before began
  shift 2
  before=$(checkpoints_of "$@")
  if [[ $dry_run ]]; then
    show "$@"
    return
  fi
  [[ $(trap -p TERM) ]] || trap ask_to_stop TERM INT
  set -m # a process group of its own: Ctrl-C reaches the run through ask_to_stop alone
  while :; do
    while [[ $before && ! $stop_asked && ! $(checkpoints_of "$@") ]]; do
      ((pause)) || pause=10
      say "no checkpoint is seen any more, as where a mount is away; looks again in $pause s"
      pause_doubled "$pause"
    done
    [[ ! $stop_asked ]] || return "$status"
    show "$@"
    status=0 began=$SECONDS
    status_of "$@" || status=$?
    saved=$(checkpoints_of "$@")
    if [[ $stop_asked ]]; then
      say "stopped by a signal, status $status; the same command goes on from the last checkpoint"
      return "$status"
    elif ((status == 75)); then
      if [[ $saved && $saved != "$before" ]] || ((SECONDS - began > LONG_RUN)); then
        pause=$delay times=0
      fi
      times=$((times + 1))
      say "storage or devices do not answer, status 75$( ((times == 1)) || echo ", $times times without a new checkpoint")" \
        "- goes on from the last checkpoint in $pause s"
      pause_doubled "$pause"
    elif ((status != 0 && status != 2 && left > 0)); then
      say "ended with status $status; goes on from the last checkpoint in $delay s (restarts left: $left)"
      left=$((left - 1))
      status_of sleep "$delay" || true
    else
      ((status == 0 || status == 2)) || say "ended with status $status, and no restarts are left"
      return "$status"
    fi
    before=${saved:-$before}
  done
}

# pause_doubled SECONDS: waits, and leaves the next pause in `pause`
pause_doubled() {
  status_of sleep "$1" || true
  pause=$((2 * $1 < LONGEST_PAUSE ? 2 * $1 : LONGEST_PAUSE))
}
