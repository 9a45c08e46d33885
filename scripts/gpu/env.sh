# Prepares a machine for the checks and defines `check` and `finish`. To be sourced from the root of the repository:
#   . scripts/gpu/env.sh SECONDS [ARCHIVE...]
# SECONDS limits all checks together. Archives of packages that the machine lacks are read from .gpu/ARCHIVE.tar.xz.
#
# Results go to $OUT (default runs/gpu-checks): results.jsonl, a line per check; numbers.jsonl, a line per measurement; log.txt.gz, all output.
# Temporary files go to $WORK (default /tmp/gpu-work), and a later call finds there what an earlier one unpacked.
#   LIST=1        print the checks instead of running them
#   ONLY="a b"    run only the checks a and b
#   DRY=1         tiny sizes, for a machine without a GPU
TOTAL_S=$1; shift
SECONDS=0
ROOT=$PWD
KIT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OUT=${OUT:-$ROOT/runs/gpu-checks} WORK=${WORK:-/tmp/gpu-work} DRY=${DRY:-} LIST=${LIST:-} ONLY=${ONLY:-}
TRAIN="model.pretrain_updates=120 stages.reason.warmup_updates=1 stages.reason.eval_every=null evaluation=null"

say() { echo "$*" | tee -a "$OUT/log.txt"; }

unpack_archives() {
  local archive
  for archive in "$@"; do
    [ -e "$SITE/.$archive" ] && continue
    if [ -e "$ROOT/.gpu/$archive.tar.xz" ]; then
      python3 "$KIT/machine.py" unpack "$ROOT/.gpu/$archive.tar.xz" "$SITE" && touch "$SITE/.$archive"
    elif [ -d "$ROOT/.gpu" ]; then
      say "MISSING: .gpu/$archive.tar.xz; only the packages installed here are used"
    fi
  done
}

# The toolkit is this repository, or travels as an archive of its own beside another one.
find_project() {
  PROJECT=$ROOT
  [ -e "$ROOT/grpo/cli.py" ] && return
  PROJECT=$WORK/project
  [ -e "$PROJECT/grpo/cli.py" ] || { mkdir -p "$PROJECT" && python3 "$KIT/machine.py" unpack "$ROOT/.gpu/project.tar.xz" "$PROJECT"; }
}

# Python with the grpo command beside it, where the tests look for it: the installed one, or a second way into python3's environment.
find_python() {
  local installed
  installed=$(command -v python3)
  if [ -x "$(dirname "$installed")/grpo" ]; then BIN=$(dirname "$installed")
  else
    BIN=$WORK/environment/bin
    [ -e "$BIN/grpo" ] || "$installed" "$KIT/machine.py" environment "$WORK/environment"
    "$BIN/python3" -c "import torch" 2>/dev/null || { say "$BIN/python3 finds no torch; $installed is used"; ln -sf "$installed" "$BIN/python3"; }
  fi
  PY=$BIN/python3
}

prepare() {
  SITE=$WORK/site
  mkdir -p "$OUT" "$SITE" "$WORK/home" "$WORK/cache"
  : >>"$OUT/log.txt"
  unpack_archives "$@"
  find_project
  find_python
  # A model's file may arrive in pieces, over several calls; model.py joins them.
  if compgen -G "$ROOT/.gpu/model-*" >/dev/null; then mkdir -p "$WORK/pieces" && cp "$ROOT"/.gpu/model-* "$ROOT/.gpu/model.sha256" "$WORK/pieces/"; fi
  export PATH=$BIN:$PATH PYTHONPATH=$KIT:$SITE:$PROJECT PYTHONUNBUFFERED=1
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1
  export HOME=$WORK/home XDG_CACHE_HOME=$WORK/cache TRITON_CACHE_DIR=$WORK/cache/triton TORCHINDUCTOR_CACHE_DIR=$WORK/cache/inductor
  "$PY" -c "import xdist" 2>/dev/null && PARALLEL="-n 6" || PARALLEL=
  cd "$PROJECT" || exit 1
  say "ready after $SECONDS s: $("$PY" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")' 2>&1 | tail -n 1)"
}

# check NAME SECONDS COMMAND...: run the command for no longer than that, nor than the call has left. A failure does not stop the call.
check() {
  local name=$1 limit=$2 left=$((TOTAL_S - SECONDS - 12)) started=$SECONDS mark rc
  shift 2
  if [ -n "$ONLY" ] && [[ " $ONLY " != *" $name "* ]]; then return 0; fi
  if [ -n "$LIST" ]; then printf '%s:' "$name"; printf ' %q' "$@"; echo; return 0; fi
  if [ "$left" -lt 8 ]; then
    echo "{\"check\": \"$name\", \"skipped\": \"no time left\"}" >>"$OUT/results.jsonl"
    say "-- $name: skipped, no time left"
    return 0
  fi
  if [ -n "$DRY" ] || [ "$limit" -gt "$left" ]; then limit=$left; fi  # a CPU may take longer than the limit, which is a GPU's
  say "== $name (at $started s, limit $limit s)"
  mark="$name-$$-$started"
  GPU_CHECK=$mark timeout -k 10 "$limit" "$@" >"$WORK/last.log" 2>&1
  rc=$?
  python3 "$KIT/machine.py" end "$mark"  # Ray's processes, or an engine, of a check that was cut short
  cat "$WORK/last.log" >>"$OUT/log.txt"
  echo "{\"check\": \"$name\", \"rc\": $rc, \"s\": $((SECONDS - started))}" >>"$OUT/results.jsonl"
  if [ "$rc" -ne 0 ]; then tail -n 12 "$WORK/last.log" | cut -c1-400
  else grep -E '^(>|.*(passed|failed))' "$WORK/last.log" | tail -n 14 | cut -c1-300; fi
  say "   $name: rc $rc after $((SECONDS - started)) s"
}

# The last metrics of a run's only stage, as a line of the named file.
last_metrics() {
  if [ -e "$WORK/$1/01-reason/metrics.jsonl" ]; then tail -n 1 "$WORK/$1/01-reason/metrics.jsonl" >>"$OUT/$2"; fi
}

finish() {
  [ -n "$LIST" ] && return
  tail -c 6000000 "$OUT/log.txt" | gzip -9 >"$OUT/log.txt.gz" && rm -f "$OUT/log.txt"
  echo "call took $SECONDS s; results:"
  cut -c1-200 "$OUT/results.jsonl"
}

if [ -n "$LIST" ]; then PY=python3 BIN= PARALLEL=
else prepare "$@"; fi
GRPO=${BIN:+$BIN/}grpo
