#!/bin/bash
# Measures the bundled model's fidelity table: tests/regress.csv and docs/fidelity.svg, both in git,
# so that a change of figures is seen. Called by `make regress`; takes an hour. A run that was
# interrupted goes on where it was, as long as the program is the same.
#
# The kernels that users run: those of the machine's best instruction set, which ISA=portable and the
# like choose otherwise. What kernels add is at most a twentieth of a codec's error, a four hundredth
# of KL. The texts are in ../shared/data (or $VQKV_DATA). WINDOWS, of 1024 tokens each, is 4.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

data=${VQKV_DATA:-../shared/data}
for text in eval_books.txt eval_wikitext2.txt eval_technical.txt eval_long_book.txt; do
    if [[ ! -r $data/$text ]]; then
        echo "regress.sh: $data/$text is missing; VQKV_DATA names the folder of the texts" >&2
        exit 1
    fi
done

out=build/regress
mkdir -p "$out"
# A store knows a plan by its recipe, not by the program that fitted it: another program, another
# store.
store=$out/$(sha256sum build/vqkvc | cut -c 1-16).db

# One half of the technical prose is calibrated on where calibrations are compared, the other
# evaluated on.
half=$(($(stat -c %s "$data/eval_technical.txt") / 2))
head -c "$half" "$data/eval_technical.txt" | sed '$d' >"$out/technical_calibration.txt"
tail -c "$half" "$data/eval_technical.txt" | sed 1d >"$out/technical.txt"

build/vqkvc suite examples/models/ref7m.gguf --db "$store" --isa "${ISA:-best}" \
    --text "$data/eval_books.txt" --text "$data/eval_wikitext2.txt" --text "$out/technical.txt" \
    --long "$data/eval_long_book.txt" --windows "${WINDOWS:-4}" --context 1024 --step 8 \
    --rates 0.5,1,1.25,1.5,2,2.5,2.75,3,3.25,4 --any-scan \
    --tables-at 1024 --tables-rates 1,1.5,2.1,2.65,3.1,3.5,3.6,3.9,4.2,5,6,8.4 \
    --top-tokens 512 --ablations --robust "$out/technical_calibration.txt" \
    --csv tests/regress.csv --svg docs/fidelity.svg
