#!/bin/bash
# Measures the bundled model's fidelity table from scratch: tests/regress.csv and docs/fidelity.svg,
# both in git, so that a change of figures is seen. Called by `make regress`.
#
# Portable kernels, which every machine has; the last digits may still differ between compilers. The
# texts are in ../shared/data (or $VQKV_DATA).
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

data=${VQKV_DATA:-../shared/data}
for text in eval_books.txt eval_wikitext2.txt; do
    if [[ ! -r $data/$text ]]; then
        echo "regress.sh: $data/$text is missing; VQKV_DATA names the folder of the texts" >&2
        exit 1
    fi
done

out=build/regress
mkdir -p "$out"
rm -f "$out"/regress.db*
build/vqkvc suite examples/models/ref7m.gguf --db "$out/regress.db" --isa portable \
    --text "$data/eval_books.txt" --text "$data/eval_wikitext2.txt" \
    --windows 4 --context 1024 --step 8 \
    --csv tests/regress.csv --svg docs/fidelity.svg
