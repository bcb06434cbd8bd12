/* Intel's tile unit in software, for CPUs that have none: a library that is loaded before a program (LD_PRELOAD) and does what each
 * tile instruction says when it traps.
 *
 * Written from Intel's Software Developer's Manual: tiles of up to 16 rows of up to 64 bytes, BF16 products with denormals as zeros
 * and sums rounded to nearest, and products of signed bytes. Instructions with operands that the unit refuses end the program, and
 * so does a tile instruction without a configuration. At exit a line on standard error says how many of each kind there were. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

/* Builds with debug assertions look for this name (kernels/src/cpu/amx.rs). */
const int ttft_emulated_tiles = 1;

enum { TILES = 8, ROWS = 16, ROW = 64 };

static __thread struct {
    uint8_t palette, rows[TILES];
    uint16_t bytes[TILES];
    uint8_t data[TILES][ROWS][ROW];
} unit;

enum { CONFIGURE, RELEASE, ZERO, LOAD, STORE, MULTIPLY, KINDS };
static _Atomic uint64_t count[KINDS];

static void refuse(const char *why)
{
    static const char begin[] = "emulated tile unit: ";
    (void)!write(2, begin, sizeof begin - 1);
    (void)!write(2, why, strlen(why));
    (void)!write(2, "\n", 1);
    _exit(86);
}

static uint64_t reg(const ucontext_t *c, unsigned number)
{
    static const int at[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t)c->uc_mcontext.gregs[at[number]];
}

/* A tile that takes part in an operation. */
static void check(unsigned tile)
{
    if (unit.palette != 1)
        refuse("a tile is used without a configuration");
    if (tile >= TILES || !unit.rows[tile])
        refuse("a tile is used that is not configured");
}

static void configure(const uint8_t *from)
{
    memset(&unit, 0, sizeof unit);
    if (from[0] == 0)
        return;
    if (from[0] != 1)
        refuse("no such palette");
    for (int i = 2; i < 16; i++)
        if (from[i])
            refuse("reserved bytes of a configuration are not 0");
    for (int i = 32; i < 64; i++)
        if (from[i] && (i < 48 || i >= 56))
            refuse("reserved bytes of a configuration are not 0");
    for (int t = 0; t < TILES; t++) {
        memcpy(&unit.bytes[t], from + 16 + 2 * t, 2);
        unit.rows[t] = from[48 + t];
        if (unit.rows[t] > ROWS || unit.bytes[t] > ROW || !unit.rows[t] != !unit.bytes[t])
            refuse("a configured tile has a shape that does not exist");
    }
    unit.palette = 1;
}

static float wide(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, 2);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Whether three tiles make a product. */
static void check_product(unsigned to, unsigned a, unsigned b)
{
    check(to), check(a), check(b);
    if (to == a || to == b || a == b)
        refuse("a product takes the same tile twice");
    if (unit.bytes[to] % 4 || unit.bytes[a] % 4 || unit.bytes[b] % 4 || unit.rows[to] != unit.rows[a] ||
        unit.bytes[to] != unit.bytes[b] || unit.bytes[a] / 4 != unit.rows[b])
        refuse("a product takes tiles whose shapes do not fit");
}

/* TDPBSSD: fours of signed bytes of a row of `a` with those of a column of `b`. */
static void multiply_bytes(unsigned to, unsigned a, unsigned b)
{
    check_product(to, a, b);
    for (int m = 0; m < unit.rows[to]; m++)
        for (int n = 0; n < unit.bytes[to] / 4; n++) {
            uint32_t sum;
            memcpy(&sum, unit.data[to][m] + 4 * n, 4);
            for (int k = 0; k < unit.rows[b]; k++)
                for (int i = 0; i < 4; i++)
                    sum += (uint32_t)((int8_t)unit.data[a][m][4 * k + i] * (int8_t)unit.data[b][k][4 * n + i]);
            memcpy(unit.data[to][m] + 4 * n, &sum, 4);
        }
}

/* TDPBF16PS: pairs of a row of `a` with pairs of a column of `b`, the even and the odd ones summed apart, then both added. */
__attribute__((target("fma"))) static void multiply(unsigned to, unsigned a, unsigned b)
{
    check_product(to, a, b);
    _mm_setcsr(0x9fc0); /* Denormals are zeros, and results that are become zeros; no exceptions, to nearest. */
    for (int m = 0; m < unit.rows[to]; m++) {
        float even[16] = {0}, odd[16] = {0}, sum[16];
        for (int k = 0; k < unit.rows[b]; k++)
            for (int n = 0; n < unit.bytes[to] / 4; n++) {
                const uint8_t *pair = unit.data[a][m] + 4 * k, *with = unit.data[b][k] + 4 * n;
                even[n] = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(wide(pair)), _mm_set_ss(wide(with)), _mm_set_ss(even[n])));
                odd[n] =
                    _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(wide(pair + 2)), _mm_set_ss(wide(with + 2)), _mm_set_ss(odd[n])));
            }
        memcpy(sum, unit.data[to][m], ROW);
        for (int n = 0; n < unit.bytes[to] / 4; n++)
            sum[n] += even[n] + odd[n];
        memset(unit.data[to][m], 0, ROW);
        memcpy(unit.data[to][m], sum, unit.bytes[to]);
    }
}

/* What the instruction at the place of the trap says; its length, or 0 if it is none of a tile. */
static int step(const ucontext_t *c)
{
    const uint8_t *code = (const uint8_t *)c->uc_mcontext.gregs[REG_RIP];
    /* VEX of three bytes, map 0F38, W and L 0. */
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84))
        return 0;
    unsigned pp = code[2] & 3, third = (code[2] >> 3 & 15) ^ 15, op = code[3], modrm = code[4];
    unsigned mod = modrm >> 6, tile = modrm >> 3 & 7, low = modrm & 7;
    int length = 5;
    if (op == 0x5c && pp == 2 && mod == 3) {
        count[MULTIPLY]++;
        multiply(tile, low, third);
        return length;
    }
    if (op == 0x5e && pp == 3 && mod == 3) {
        count[MULTIPLY]++;
        multiply_bytes(tile, low, third);
        return length;
    }
    if (op == 0x49 && mod == 3 && third == 0) {
        if (pp == 0 && modrm == 0xc0) {
            count[RELEASE]++;
            memset(&unit, 0, sizeof unit);
            return length;
        }
        if (pp == 3 && low == 0) {
            count[ZERO]++;
            check(tile);
            memset(unit.data[tile], 0, sizeof unit.data[tile]);
            return length;
        }
        return 0;
    }
    int configures = op == 0x49 && pp == 0 && tile == 0, moves = op == 0x4b && pp != 0;
    if (mod == 3 || third != 0 || !(configures || moves))
        return 0;
    unsigned long more_index = !(code[1] & 0x40), more_base = !(code[1] & 0x20);
    uint64_t address = 0, stride = 0;
    unsigned base = low;
    if (low == 4) {
        unsigned sib = code[length++], index = (sib >> 3 & 7) + 8 * more_index;
        base = sib & 7;
        stride = index == 4 ? 0 : reg(c, index) << (sib >> 6);
    } else if (moves || (mod == 0 && low == 5)) {
        return 0;
    }
    if (!(mod == 0 && base == 5))
        address = reg(c, base + 8 * more_base);
    if (mod == 1) {
        address += (uint64_t)(int64_t)(int8_t)code[length++];
    } else if (mod == 2 || base == 5) {
        int32_t far;
        memcpy(&far, code + length, 4);
        address += (uint64_t)(int64_t)far;
        length += 4;
    }
    if (configures) {
        count[CONFIGURE]++;
        configure((const uint8_t *)(address + stride));
        return length;
    }
    check(tile);
    if (pp == 2) {
        count[STORE]++;
        for (unsigned r = 0; r < unit.rows[tile]; r++)
            memcpy((void *)(address + r * stride), unit.data[tile][r], unit.bytes[tile]);
    } else {
        count[LOAD]++;
        memset(unit.data[tile], 0, sizeof unit.data[tile]);
        for (unsigned r = 0; r < unit.rows[tile]; r++)
            memcpy(unit.data[tile][r], (const void *)(address + r * stride), unit.bytes[tile]);
    }
    return length;
}

static void trapped(int signal, siginfo_t *info, void *context)
{
    (void)info;
    ucontext_t *c = context;
    int length = step(c);
    if (length)
        c->uc_mcontext.gregs[REG_RIP] += length;
    else
        (void)!sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL); /* And it traps again. */
}

__attribute__((constructor)) static void begin(void)
{
    struct sigaction how = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    if (sigaction(SIGILL, &how, NULL))
        refuse("the trap cannot be set");
}

__attribute__((destructor)) static void end(void)
{
    if (count[CONFIGURE])
        fprintf(stderr, "emulated tile unit: %ju configurations, %ju releases, %ju zeroed, %ju loads, %ju stores, %ju products\n",
                (uintmax_t)count[CONFIGURE], (uintmax_t)count[RELEASE], (uintmax_t)count[ZERO], (uintmax_t)count[LOAD],
                (uintmax_t)count[STORE], (uintmax_t)count[MULTIPLY]);
}
