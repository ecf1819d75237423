#!/usr/bin/env bash
# The tests that run CPU kernels and host code, on a build of the extension under sanitizers. Linux with GCC, and
# pip install '.[cpu,test]' scikit-build-core nanobind:
#
#   tools/run_sanitizers.sh address,undefined [pytest's arguments]    12 minutes on two cores
#   tools/run_sanitizers.sh thread [pytest's arguments]
#
# Python and MLX are as they are: their memory is watched where they ask for it, and leaks are not looked for.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizer=${1:?address,undefined or thread}
shift
python=${PYTHON:-python3}
build=${BUILD:-$(mktemp -d)}

"$python" -m pip install -q --no-build-isolation --no-deps --upgrade --target "$build/packages" -C build-dir="$build/objects" \
  -C cmake.define.SDPA_SANITIZE="$sanitizer" -C cmake.build-type=RelWithDebInfo .

library() { "${CXX:-g++}" -print-file-name="lib$1.so"; }
case $sanitizer in
  address,undefined) runtime="$(library asan) $(library ubsan) $(library stdc++)" ;;
  thread) runtime="$(library tsan) $(library stdc++)" ;;
  *) echo "address,undefined or thread, not $sanitizer" >&2; exit 2 ;;
esac
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="exitcode=66 suppressions=$PWD/tools/thread_sanitizer.txt"

tests=(arguments backward cases chunks compile dims empty explain first_use gradients layouts limits masks memory memory_limit
  merge models patch patch_lm patch_quantized patch_stats plan properties quantized reference router router_costs router_dispatch
  router_stock specials streams_threads tiles training vmap)
files=("${tests[@]/#/tests/test_}")
files=("${files[@]/%/.py}")
# -s: what a sanitizer says before it ends the process is not kept by pytest
PYTHONPATH="$build/packages" LD_PRELOAD="$runtime" "$python" -m pytest -q -s -p no:cacheprovider \
  "${files[@]}" "$@"
