#!/bin/bash
# Times attention through emitted headers of the bundled model, next to the baselines, the in-tree
# fp16 attention and the memory's own speed: all in turn within one run. Results, not tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

vqkvc=build/vqkvc
model=examples/models/ref7m.gguf
out=build/bench
mkdir -p "$out"
rm -f "$out"/bench.db*

plan() {
    "$vqkvc" build "$model" --db "$out/bench.db" --n-tokens 16384 -q -o "$out/$1.h" "${@:2}" >/dev/null
}
plan shared_2bit --bits 2
plan own_2bit --bits 2 --max-scan 2 --layers-shared 1
plan own_2bit_post --bits 2 --max-scan 2 --layers-shared 1 --frame post
plan own_1bit_post --bits 1 --max-scan 1 --layers-shared 1 --frame post

grep -m 1 'model name' /proc/cpuinfo || true
"$vqkvc" eval "$model" --db "$out/bench.db" --header "$out/shared_2bit.h" \
    --header "$out/own_2bit.h" --header "$out/own_2bit_post.h" --header "$out/own_1bit_post.h" \
    --tokens tests/data/ref7m_tokens.i32 --windows 1 --context 512 --speed -q
