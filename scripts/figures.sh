#!/bin/bash
# Measures from scratch and prints one line a figure: name value unit. Called by `make figures`.
# Fidelity is on held-out books where ../shared/data (or $VQKV_DATA) has them, else on the passage in
# tests/data; stderr says which.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

vqkvc=build/vqkvc
model=examples/models/ref7m.gguf
out=build/figures
mkdir -p "$out"

rm -f "$out"/figures.db*
start=$(date +%s.%N)
"$vqkvc" build "$model" --bits 2 --db "$out/figures.db" -q -o "$out/ref7m_kv.h" >&2
end=$(date +%s.%N)
awk -v a="$start" -v b="$end" 'BEGIN { printf "build.seconds %.2f s\n", b - a }'

books=${VQKV_DATA:-../shared/data}/eval_books.txt
if [[ -r $books ]]; then
    text=(--text "$books" --windows 8)
else
    text=(--tokens tests/data/ref7m_tokens.i32 --windows 1 --context 512)
fi
echo "figures: fidelity on ${text[1]##*/}" >&2
"$vqkvc" eval "$model" --header "$out/ref7m_kv.h" --db "$out/figures.db" "${text[@]}" \
    --speed --figures -q | sed -E 's/^header\.(bytes|compile_seconds)\.auto2 /header.\1 /'

# The other rates of auto and the published methods, on the same text: the store has the capture.
# auto2 is above.
"$vqkvc" suite "$model" --rates 0.5,1,1.25,1.5,3 --schemes vqkv,aqua2,svdq,kivi2,kvquant2 \
    --db "$out/figures.db" "${text[@]}" --figures -q |
    grep -E '^(fidelity\.(kl|ppl)|bits|bits\.total|scan)\.(auto|vqkv|aqua|svdq|kivi|kvquant)[0-9. ]'

# Attention at a shape of large models: nanoseconds a cached token and KV head.
echo "figures: speed, head_dim 128, 4 query heads a KV head, 16384 tokens, one thread" >&2
"$vqkvc" bench --schemes auto1,auto2,auto4,auto2s --figures -q
"$vqkvc" bench --schemes auto1,auto2,auto4 --isa avx2 --figures -q |
    grep -E '^speed\.(attend|encode)_ns\.[a-z0-9]+(\.16k)?\.avx2 '
