#!/bin/bash
# Builds, checks and times decoding, prefill and encoding through emitted CUDA headers on the GPU that is there: one layer of
# 32 query heads and 8 KV heads of 128 channels. PyTorch's fp16 attention follows where python3 has
# torch. Skips, and says so, without nvcc or a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
out=$build/cuda
if ! command -v nvcc >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "make bench-cuda: nvcc or a GPU is missing: skipped"
    exit 0
fi
mkdir -p "$out"
run() { # NAME OPTION...
    local name=$1
    shift
    "$build/vqkvc" build -q --simulate 1x32x8x128 --no-db --target cuda --prefix bench_kv \
        -o "$out/bench_$name.cuh" "$@" >/dev/null
    nvcc -std=c++17 -O3 -arch=native -DCUDA_HEADER="\"bench_$name.cuh\"" -I"$out" -Itests \
        tests/bench_cuda.cu -o "$out/bench_$name"
    echo "== $name"
    "$out/bench_$name"
}
run q4_0 --scheme q4_0
for bits in 1 2 4; do
    run "auto$bits" --bits "$bits" --max-scan "$bits" --layers-shared 1 --frame post
done
if python3 -c 'import torch' 2>/dev/null; then
    echo "== fp16, PyTorch scaled_dot_product_attention"
    python3 - <<'END'
import torch
for batch in (1, 16, 64):
    for n in (4096, 32768, 131072):
        if batch * n * 8 * 128 * 4 > torch.cuda.mem_get_info()[0] // 2:
            continue
        q = torch.randn(batch, 32, 1, 128, device="cuda", dtype=torch.half)
        k, v = (torch.randn(batch, 8, n, 128, device="cuda", dtype=torch.half) for _ in "kv")
        times = []
        for i in range(24):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) * 1000)
        print(f"{batch:6d} {n:8d} {sorted(times[3:])[10]:10.1f} us")
END
fi
