/* A plugin for QEMU's user-mode emulator: counts the AArch64 instructions a program executes.
 *
 * At exit it writes one line to standard error: all, vector (every Advanced SIMD and floating-point instruction, loads and
 * stores among them), fma (FMLA), matrix (BFMMLA), dot (BFDOT). Counters are exact for one thread.
 *
 * The prototypes are those of plugin API version 1 (QEMU 4.2 to 8.x), which Debian ships no header for. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *, uint64_t);

int qemu_plugin_version = 1;

enum { ALL, VECTOR, FMA, MATRIX, DOT, KINDS };
static uint64_t count[KINDS];

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint32_t w = *(const uint32_t *)qemu_plugin_insn_data(insn);
        int is[KINDS] = {
            [ALL] = 1,
            /* Bits 28:25 are x111 for SIMD arithmetic, x1x0 for loads and stores, whose bit 26 says SIMD. */
            [VECTOR] = (w >> 27 & 1) && (w >> 26 & 1),
            /* FMLA by vector, and by element. */
            [FMA] = (w & 0xbfa0fc00) == 0x0e20cc00 || (w & 0xbf80f400) == 0x0f801000,
            [MATRIX] = (w & 0xffe0fc00) == 0x6e40ec00,
            [DOT] = (w & 0xbfe0fc00) == 0x2e40fc00,
        };
        for (int k = 0; k < KINDS; k++)
            if (is[k])
                qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &count[k], 1);
    }
}

static void report(qemu_plugin_id_t id, void *data)
{
    fprintf(stderr, "counted %lu %lu %lu %lu %lu\n", count[ALL], count[VECTOR], count[FMA], count[MATRIX], count[DOT]);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
    qemu_plugin_register_atexit_cb(id, report, NULL);
    return 0;
}
