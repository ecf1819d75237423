#!/usr/bin/env bash
# The tests that need an NVIDIA GPU, for anyone who has one and mlx[cuda13]:
#
#   pip install '.[cuda13,test]' && tools/run_cuda_tests.sh [pytest's arguments]
#   tools/run_cuda_tests.sh --sanitize        memcheck, racecheck and synccheck of our kernels instead
#
# The cases are those of the CPU and of Metal (tests/cases.py), with the same float64 reference.
set -euo pipefail
cd "$(dirname "$0")/.."
export MLX_SDPA_EXT_DEVICE=cuda MLX_ENABLE_TF32=0
python=${PYTHON:-python3}

if [[ ${1:-} != --sanitize ]]; then
  exec "$python" -m pytest -q tests/cuda "$@"
fi
shift
sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
command -v "$sanitizer" >/dev/null || { echo "compute-sanitizer is not on the PATH" >&2; exit 2; }
# MLX's own kernels are none of ours to check, and its pool keeps memory on purpose.
for tool in memcheck racecheck synccheck; do
  echo "== compute-sanitizer --tool $tool"
  "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name regex=sdpa_kernel \
    "$python" -m pytest -q -x -p no:cacheprovider tests/cuda -k "${SANITIZE_TESTS:-a_call_that_the_kernel_is_for}" "$@"
done
