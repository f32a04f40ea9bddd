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
    for stem in kernels backward; do
      compile -DDITN_LEVEL=avx2 -mavx2 -mfma -mf16c -c cpu/$stem.cpp -o "$build/$stem-avx2.o" &
      compile -DDITN_LEVEL=avx512 $avx512 -c cpu/$stem.cpp -o "$build/$stem-avx512.o" &
      compile -DDITN_LEVEL=avx512bf16 $avx512 -mavx512bf16 -c cpu/$stem.cpp -o "$build/$stem-avx512bf16.o" &
      wait
    done
    compile -DDITN_LEVEL=amx $avx512 -mavx512bf16 -mamx-tile -mamx-bf16 -c cpu/kernels.cpp -o "$build/kernels-amx.o"
    levels=avx2
    if grep -q avx512vl /proc/cpuinfo; then levels="$levels avx512"; fi
    if grep -q avx512_bf16 /proc/cpuinfo; then levels="$levels avx512bf16"; fi
    if grep -q amx_bf16 /proc/cpuinfo; then levels="$levels amx"; fi
    compile -DDITN_AMX sanitize.cpp cpu/level.cpp "$build"/*.o -o "$build/sanitize" -pthread
  else
    for stem in kernels backward; do compile -DDITN_LEVEL=neon -c cpu/$stem.cpp -o "$build/$stem-neon.o"; done
    levels=neon
    compile sanitize.cpp cpu/level.cpp "$build"/*.o -o "$build/sanitize" -pthread
  fi
  for level in $levels; do
    printf '%s ' "$sanitizer"
    DITN_CPU_LEVEL=$level "$build/sanitize"
  done
done
