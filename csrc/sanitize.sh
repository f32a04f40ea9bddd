#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every kernel under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer, for every level that
# this CPU runs.
set -eu
cd "$(dirname "$0")"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
common="-std=c++20 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all"

for sanitizer in address,undefined thread; do
  compile() { "${CXX:-g++}" $common -fsanitize=$sanitizer "$@"; }
  if [ "$(uname -m)" = x86_64 ]; then
    avx512="-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -w"
    compile -DDITN_LEVEL=avx2 -mavx2 -mfma -mf16c -c cpu/kernels.cpp -o "$build/avx2.o" &
    compile -DDITN_LEVEL=avx512 $avx512 -c cpu/kernels.cpp -o "$build/avx512.o" &
    compile -DDITN_LEVEL=avx512bf16 $avx512 -mavx512bf16 -c cpu/kernels.cpp -o "$build/avx512bf16.o"
    wait
    levels=avx2
    if grep -q avx512vl /proc/cpuinfo; then levels="$levels avx512"; fi
    if grep -q avx512_bf16 /proc/cpuinfo; then levels="$levels avx512bf16"; fi
    compile sanitize.cpp cpu/level.cpp "$build"/avx*.o -o "$build/sanitize" -pthread
  else
    compile -DDITN_LEVEL=neon -c cpu/kernels.cpp -o "$build/neon.o"
    levels=neon
    compile sanitize.cpp cpu/level.cpp "$build/neon.o" -o "$build/sanitize" -pthread
  fi
  for level in $levels; do
    printf '%s ' "$sanitizer"
    DITN_CPU_LEVEL=$level "$build/sanitize"
  done
done
