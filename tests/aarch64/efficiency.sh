#!/usr/bin/env bash
# How good the AArch64 kernels are, without the hardware: prints the table in kernels/README.md.
#
# For each kernel: its inner loop as compiled (instructions, how many of them multiply and add, accesses to the stack), the
# cycles that llvm-mca predicts for it on Neoverse V1 (four vector pipes, the nearest model to an Apple performance core),
# and the instructions executed by a whole `y = x W^T`, packing included, counted in the emulator by count.c.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/../aarch64.sh" setup >&2

LLVM=$("$RUSTC" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
MCA=$PREFIX/usr/lib/llvm-$LLVM/bin/llvm-mca
[ -x "$MCA" ] || unpack "llvm-$LLVM"
command -v qemu-aarch64 >/dev/null || root apt-get install -y -qq --no-install-recommends qemu-user >/dev/null
command -v gcc >/dev/null || fail "needs gcc"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
gcc -O2 -shared -fPIC -Wl,--unresolved-symbols=ignore-all -o "$WORK/count.so" "$HERE/count.c"
CARGO_PROFILE_RELEASE_DEBUG=false cargo build --quiet --release --locked -p ttft-tests --example linear --target $LINUX
PROGRAM=$OUT/$LINUX/release/examples/linear
aarch64-linux-gnu-objdump -d --no-show-raw-insn -C "$PROGRAM" >"$WORK/program.s"

MULTIPLY='^(fmla|bfmmla|bfdot)$'

# inner_loop FUNCTION: the innermost loop with the most multiply-adds, one instruction a line, without its branch.
inner_loop() {
    awk -v name="<$1>:" -v multiply="$MULTIPLY" '
        index($0, name) { on = 1; next }
        on && NF == 0 { exit }
        on {
            sub(/ *\/\/.*/, "")
            split($1, a, ":"); at[n] = a[1]; line[n] = $0; op[n] = $2; n++
        }
        END {
            for (i = 0; i < n; i++) index_of[at[i]] = i
            for (i = 0; i < n; i++) {
                if (op[i] !~ /^(b\..*|cbnz|cbz|tbnz|tbz)$/ || !match(line[i], /[0-9a-f]+ </)) continue
                to = substr(line[i], RSTART, RLENGTH - 2)
                if (!(to in index_of) || index_of[to] >= i) continue
                from = index_of[to]; fma = 0; inner = 1
                for (j = from; j < i; j++) {
                    if (op[j] ~ multiply) fma++
                    if (j in tail) inner = 0
                }
                tail[i] = 1
                if (inner && fma > best) { best = fma; first = from; last = i }
            }
            for (j = first; j < last; j++) { sub(/^[^\t]*\t/, "", line[j]); print line[j] }
        }' "$WORK/program.s"
}

# executed X W M N K CPU: what one call executes, as `all vector multiply kernel`, by the difference of two runs.
executed() {
    local r
    for r in 1 3; do
        qemu-aarch64 -cpu "$6" -L $SYSROOT -plugin "$WORK/count.so" "$PROGRAM" "${@:1:5}" $r >"$WORK/out" 2>"$WORK/err"
        awk '$1 == "counted" { print $2, $3, $4 + $5 + $6 }' "$WORK/err"
    done | awk -v kernel="$(cat "$WORK/out" 2>/dev/null)" '
        NR == 1 { a = $1; v = $2; m = $3 }
        NR == 2 { printf "%d %d %d\n", ($1 - a) / 2, ($2 - v) / 2, ($3 - m) / 2 }'
}

# row X W M CPU FUNCTION MACS_PER_MULTIPLY
row() {
    # Few rows: K of OpenELM-1.1B, so that the sums at the end of a row weigh what they do there.
    local n=512 k=$(($3 == 1 ? 2048 : 512)) length multiplies stack cycles all vector fma kernel
    inner_loop "ttft_kernels::levels::$5" >"$WORK/loop.s"
    length=$(($(wc -l <"$WORK/loop.s") + 1))
    multiplies=$(awk -v multiply="$MULTIPLY" '$1 ~ multiply' "$WORK/loop.s" | wc -l)
    stack=$(grep -cE '\[(sp|x29)' "$WORK/loop.s" || true)
    [ "$multiplies" -gt 0 ] || fail "$5: no inner loop found"
    cycles=$(LD_LIBRARY_PATH=$PREFIX/usr/lib/x86_64-linux-gnu "$MCA" -mtriple=aarch64 -mcpu=neoverse-v1 -iterations=1000 \
        "$WORK/loop.s" 2>/dev/null | awk '/^Total Cycles:/ { print $3 / 1000 }')
    read -r all vector fma <<<"$(executed "$1" "$2" "$3" $n $k "$4")"
    kernel=$(cat "$WORK/out")
    awk -v kernel="$kernel" -v x="$1" -v w="$2" -v m="$3" -v n=$n -v k=$k -v len="$length" -v mul="$multiplies" \
        -v stack="$stack" -v cycles="$cycles" -v all="$all" -v vector="$vector" -v fma="$fma" -v macs="$6" 'BEGIN {
        printf "| `%s` | %s x %s | %d of %d (%.0f%%) | %d | %.2f | %.2f | %dx%dx%d | %.0f%% | %.0f%% | %.2f |\n", kernel, x, w,
            mul, len, 100 * mul / len, stack, mul / cycles, macs * mul / len, m, n, k,
            100 * fma / vector, 100 * fma / all, m * n * k / all
    }'
}

echo "| kernel | x and W | multiply-adds of the loop's instructions | stack accesses | multiply-adds per cycle | MACs per instruction | whole MxNxK | multiply-adds of its vector instructions | of all | MACs per instruction |"
echo "|---|---|---|---|---|---|---|---|---|---|"
NEON=neoverse-n1 BF16=max,sve=off
row f32 f32 128 $NEON neon::fmla::micro 4
row f32 f16 128 $NEON neon::fmla::micro 4
row f32 bf16 128 $NEON neon::fmla::micro 4
row bf16 bf16 128 $NEON neon::fmla::micro 4
row bf16 bf16 128 $BF16 neonbf16::micro 16
row f32 f32 1 $NEON neon::dot::f32_f32 4
row f32 f16 1 $NEON neon::dot::f32_f16 4
row f32 bf16 1 $NEON neon::dot::f32_bf16 4
row bf16 bf16 1 $BF16 neonbf16::bf16_bf16 8
