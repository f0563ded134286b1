#!/bin/bash
# Times attention through emitted headers, next to the baselines, the in-tree fp16 attention and the
# memory's own speed: all in turn within one run. Results, not tests.
#
#   scripts/bench.sh          one shape: head_dim 128, 4 query heads a KV head, 16384 tokens
#   BENCH=all scripts/bench.sh    contexts, head dims, groups, blocks and instruction sets as well
#
# A line of each measurement goes to build/bench/*.csv.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

vqkvc=build/vqkvc
out=build/bench
mkdir -p "$out"
bench() {
    local name=$1
    shift
    "$vqkvc" bench -q --csv "$out/$name.csv" "$@"
    echo
}

grep -m 1 'model name' /proc/cpuinfo || true
bench default
bench blocks64 --schemes auto2b,auto2s --block 64
bench blocks256 --schemes auto2b,auto2s --block 256
if grep -q -m 1 avx512_vnni /proc/cpuinfo; then
    bench avx2 --isa avx2 --schemes auto1,auto2,auto4
fi
# Kernel by kernel: those of a plan of the bundled model, for every instruction set of this machine.
"$vqkvc" build examples/models/ref7m.gguf --self --layers-shared 1 --frame post --prefix toy_kv -q \
    --db "$out/vqkvc.db" -o "$out/toy_kv.h"
${CC:-cc} -std=c11 -D_POSIX_C_SOURCE=200809L -O2 -DHEADER='"toy_kv.h"' -I"$out" -Itests \
    tests/kernel_check.c -lm -o "$out/kernels"
"$out/kernels" time | tee "$out/kernels.txt"
if [[ ${BENCH:-} == all ]]; then
    for context in 1024 4096 65536; do
        bench "context$context" --context "$context" --schemes auto1,auto2,auto4,q8_0,q4_0
    done
    for head_dim in 64 80 96 256; do
        bench "head_dim$head_dim" --head-dim "$head_dim" --schemes auto1,auto2,auto4
    done
    for group in 1 2 8; do
        bench "group$group" --group "$group" --schemes auto1,auto2,auto4
    done
fi
