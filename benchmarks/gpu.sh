#!/usr/bin/env bash
# What only a GPU can tell. One stage a call, since a lent machine ends commands that take long; in this order:
#
#   bash benchmarks/gpu.sh OUT cache      # on any machine of the same Python and Triton: what others need not compile
#   bash benchmarks/gpu.sh OUT tests      # the kernels and the operators, right or wrong
#   bash benchmarks/gpu.sh OUT first      # our own times alone, nothing compiled: a minute or two
#   bash benchmarks/gpu.sh OUT bfloat16   # all contenders; then float32, scaling
#   bash benchmarks/gpu.sh OUT simclr     # a whole training step; then vicreg
#   bash benchmarks/gpu.sh OUT memcheck   # then racecheck; both want the CUDA toolkit
#
# Logs and JSON go to OUT; move its *.json to benchmarks/results/gpu/ and run `python -m benchmarks.readme`. Every case
# is written as soon as it is measured, and a stage that was cut off goes on where it was when it is called again.
#
# Needs Python with a CUDA torch and its triton. Wheels to carry where no registry is reached: einops, pytest, pluggy,
# iniconfig, hypothesis, sortedcontainers; for simclr and vicreg also timm and lightly, with what they bring.
set -uo pipefail
cd "$(dirname "$0")/.."
usage="usage: bash benchmarks/gpu.sh OUT STAGE"
out=${1:?$usage}
stage=${2:?$usage}
[ $# -eq 2 ] || { echo "error: got $(($# - 1)) stages, wanted one a call" >&2; exit 2; }
mkdir -p "$out"
python=$(command -v python3 || command -v python) || { echo "error: found neither python3 nor python" >&2; exit 2; }

cache=$(cd "$out" && pwd)/cache # carried along with OUT
[ -d "$cache" ] && export TRITON_CACHE_DIR=$cache

log() { # the command: its whole output in a file, the end of it on the screen
  echo "== $stage: $*"
  "$@" >"$out/$stage.log" 2>&1
  local code=$?
  tail -n 15 "$out/$stage.log"
  [ $code -eq 0 ] || echo "failed: $stage"
  return $code
}

measure() { # arguments of the benchmark, beside the device and the file
  log "$python" -m benchmarks --device cuda --json "$out/$stage.json" --resume "$@"
}

sanitize() { # which tests, by pytest's expression
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
  [ -n "$tool" ] || { echo "error: compute-sanitizer is neither on the path nor in /usr/local/cuda*/bin" >&2; exit 2; }
  # torch keeps freed memory, in which an access out of bounds looks right
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 log "$tool" --tool "$stage" --error-exitcode 1 \
    "$python" -m pytest -q -x -p no:cacheprovider -o addopts="" tests/test_triton.py -k "$1"
}

case $stage in
  cache) log "$python" -m benchmarks.cache "$cache" --dtype bfloat16 float32 ;;
  tests)
    log "$python" -m pytest -q -p no:cacheprovider -o addopts="" tests/test_triton.py tests/test_ops.py \
      tests/test_functional.py tests/test_sensitivity.py tests/test_precision.py tests/test_memory.py
    ;;
  first) measure --dtype bfloat16 --no-compile --only '^mast_ops' --seconds 1 ;;
  bfloat16 | float32) measure --dtype "$stage" --seconds 3 ;;
  scaling) measure --dtype bfloat16 --suite scaling --seconds 3 ;;
  simclr | vicreg) # ResNet-50 keeps about 44 MB an image in half precision: 2 x 512 images fit 80 GB, 2 x 1024 do not
    mkdir -p "$out/step"
    log "$python" -m benchmarks.step --base "$stage" --model resnet50 --size 224 --batch 512 --dim 256 \
      --dtype bfloat16 --device cuda --json "$out/step/$stage.json"
    ;;
  memcheck) sanitize "not compile and not export" ;;
  racecheck) sanitize "test_pairs or test_contrast_reads" ;; # it is ten times slower: a part of them
  *)
    echo "error: stage: got $stage, wanted cache, tests, first, bfloat16, float32, scaling, simclr, vicreg, memcheck or racecheck" >&2
    exit 2
    ;;
esac
