#include "runtime/isa.h"

#if SMOE_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if SMOE_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif SMOE_ARM && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace smoe {

#if SMOE_X86
namespace {

#if defined(SMOE_EMULATE_AMX)
bool has_tiles() { return true; }
#else
// Tile registers are large, so Linux saves them only for processes that request them. Requesting them twice is
// harmless.
bool tiles_permitted() {
#if defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

bool has_tiles() {
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           __builtin_cpu_supports("amx-int8") && tiles_permitted();
}
#endif

// An Intel core multiplied bfloat16 numbers in pairs at half the rate of float32 numbers, AMD's at twice that rate. One
// model was measured and stands for all (decision 113).
[[maybe_unused]] bool multiplies_pairs_slowly() { return __builtin_cpu_is("intel"); }

}  // namespace
#else
namespace {

[[maybe_unused]] bool multiplies_pairs_slowly() { return false; }

}  // namespace
#endif

#if SMOE_ARM
namespace {

#if defined(__APPLE__)
bool has_feature(const char* name) {
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname(name, &has, &size, nullptr, 0) == 0 && has;
}
#endif

bool multiplies_bytes() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_DotProd");
#else
    return false;
#endif
}

bool multiplies_matrices() {
#if defined(__linux__)
    constexpr unsigned long I8MM = 1 << 13, BF16 = 1 << 14;  // of AT_HWCAP2; headers before Linux 5.6 lack the names
    return (getauxval(AT_HWCAP2) & (I8MM | BF16)) == (I8MM | BF16);
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_I8MM") && has_feature("hw.optional.arm.FEAT_BF16");
#else
    return false;
#endif
}

}  // namespace
#endif

bool isa_available(int isa) {
#if defined(SMOE_ONLY_ISA)
    if (isa != SMOE_ONLY_ISA_CODE) return false;
#endif
    if (isa == PORTABLE) return true;
#if SMOE_ARM
    if (isa == NEON) return multiplies_bytes();
    if (isa == NEONBF16) return multiplies_bytes() && multiplies_matrices();
#endif
#if SMOE_X86
    __builtin_cpu_init();
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (isa == AVX2) return has_avx2;
    if (isa == AVXVNNI) return has_avx2 && __builtin_cpu_supports("avxvnni");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (isa == AVX512) return has_avx512;
    const bool vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
    if (isa == AVX512VNNI) return vnni;
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
    if (isa == AVX512BF16) return bf16;
    if (isa == AMX) return bf16 && has_tiles();
#endif
    return false;
}

int fastest_isa() {
#if defined(SMOE_ONLY_ISA)
    return SMOE_ONLY_ISA_CODE;
#else
    int fastest = PORTABLE;
    for (int isa = PORTABLE + 1; isa <= NEONBF16; ++isa)
        if (isa_available(isa) && !(isa == AVX512BF16 && multiplies_pairs_slowly())) fastest = isa;
    return fastest;
#endif
}

}  // namespace smoe
