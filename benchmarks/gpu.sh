#!/usr/bin/env bash
# What only a GPU can tell, in one command and in the order in which it matters:
#
#   bash benchmarks/gpu.sh OUT [tests|sanitize|bench|scaling|step ...]     # default: all of them
#
# Logs and JSON go to OUT; move its *.json to benchmarks/results/gpu/ and run `python -m benchmarks.readme`.
# Needs Python with a CUDA torch, triton, einops, pytest and hypothesis; "step" also timm and lightly; "sanitize" the CUDA toolkit.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bash benchmarks/gpu.sh OUT [STAGE ...]}
shift
mkdir -p "$out"
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(tests sanitize bench scaling step)
failed=0

log() { # name, command: the whole output in a file, its end on the screen
  local name=$1
  shift
  echo "== $name: $*"
  if ! "$@" >"$out/$name.log" 2>&1; then
    failed=1
    echo "failed: $name"
  fi
  tail -n 15 "$out/$name.log"
}

kernels=(tests/test_triton.py tests/test_ops.py tests/test_functional.py tests/test_sensitivity.py)
for stage in "${stages[@]}"; do
  case $stage in
    tests) log tests python -m pytest -q -p no:cacheprovider -o addopts="" "${kernels[@]}" tests/test_precision.py tests/test_memory.py ;;
    sanitize)
      for tool in memcheck racecheck; do
        log "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
          python -m pytest -q -x -p no:cacheprovider -o addopts="" tests/test_triton.py -k "not compile and not export"
      done
      ;;
    bench)
      log bfloat16 python -m benchmarks --device cuda --dtype bfloat16 --seconds 3 --json "$out/bfloat16.json"
      log float32 python -m benchmarks --device cuda --dtype float32 --seconds 3 --json "$out/float32.json"
      ;;
    scaling) log scaling python -m benchmarks --device cuda --dtype bfloat16 --suite scaling --seconds 3 --json "$out/scaling.json" ;;
    step)
      for base in simclr vicreg; do
        log "step-$base" python -m benchmarks.step --base "$base" --model resnet50 --size 224 --batch 1024 --dim 256 \
          --dtype bfloat16 --device cuda --json "$out/step/$base.json"
      done
      ;;
    *)
      echo "error: stage: got $stage, wanted tests, sanitize, bench, scaling or step" >&2
      exit 2
      ;;
  esac
done
exit $failed
