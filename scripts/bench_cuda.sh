#!/bin/bash
# Builds, checks and times decoding, prefill and encoding through emitted CUDA headers on the GPU
# that is there: one layer of 32 query heads and 8 KV heads of 128 channels. Each is first run over a
# short context under compute-sanitizer, where that is installed. PyTorch's fp16 attention follows
# where python3 has torch for this GPU. Skips, and says so, without nvcc or a GPU; a plan that fails
# does not keep the others from running.
#
#   CUDA_PLANS="post2 auto2" scripts/bench_cuda.sh       (q4_0 post1 post2 post4 auto2)
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
out=$build/cuda
if ! command -v nvcc >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
    echo "make bench-cuda: nvcc or a GPU is missing: skipped"
    exit 0
fi
mkdir -p "$out"
nvidia-smi -L
failed=

# Memory and races; initcheck would count the unused ends of blocks.
sanitize() { # PROGRAM
    command -v compute-sanitizer >/dev/null || return 0
    for tool in memcheck racecheck; do
        timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 9 "$1" check \
            >"$1.$tool.log" 2>&1 && continue
        echo "compute-sanitizer, $tool: see $1.$tool.log"
        return 1
    done
}
run() { # NAME OPTION...
    local name=$1
    shift
    echo "== $name"
    "$build/vqkvc" build -q --simulate 1x32x8x128 --n-tokens 2048 --sample 1024 --no-db --target cuda \
        --prefix bench_kv -o "$out/bench_$name.cuh" "$@" >/dev/null &&
        nvcc -std=c++17 -O3 -arch=native -DCUDA_HEADER="\"bench_$name.cuh\"" -I"$out" -Itests \
            tests/bench_cuda.cu -o "$out/bench_$name" &&
        sanitize "$out/bench_$name" && "$out/bench_$name" || failed="$failed $name"
}
read -ra plans <<<"${CUDA_PLANS:-q4_0 post1 post2 post4 auto2}"
for plan in "${plans[@]}"; do
    case $plan in
    post*) run "$plan" --bits "${plan#post}" --max-scan "${plan#post}" --layers-shared 1 --frame post ;;
    auto*) run "$plan" --bits "${plan#auto}" ;;
    *) run "$plan" --scheme "$plan" ;;
    esac
done
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "== fp16, PyTorch scaled_dot_product_attention"
    python3 - <<'END' || echo "PyTorch's attention could not be timed"
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
        del q, k, v
END
fi
if [[ -n $failed ]]; then
    echo "make bench-cuda: failed:$failed" >&2
    exit 1
fi
