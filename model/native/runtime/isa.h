// Kernels are compiled once per instruction set, each time into a namespace of that name (the build sets SMOE_ISA).
#pragma once

#if defined(__x86_64__)
#define SMOE_X86 1
#else
#define SMOE_X86 0
#endif

#if defined(__aarch64__)
#define SMOE_ARM 1
#else
#define SMOE_ARM 0
#endif

// Declare a kernel in every instruction set's namespace.
#if defined(SMOE_ONLY_ISA)
#define SMOE_PER_ISA(...)     \
    namespace SMOE_ONLY_ISA { \
    __VA_ARGS__;              \
    }
// Call kernel(arguments) of the given instruction set.
#define SMOE_CALL(isa, ...) (static_cast<void>(isa), SMOE_ONLY_ISA::__VA_ARGS__)
#elif SMOE_X86
#define SMOE_PER_ISA(...)  \
    namespace portable {   \
    __VA_ARGS__;           \
    }                      \
    namespace avx2 {       \
    __VA_ARGS__;           \
    }                      \
    namespace avxvnni {    \
    __VA_ARGS__;           \
    }                      \
    namespace avx512 {     \
    __VA_ARGS__;           \
    }                      \
    namespace avx512vnni { \
    __VA_ARGS__;           \
    }                      \
    namespace avx512bf16 { \
    __VA_ARGS__;           \
    }                      \
    namespace amx {        \
    __VA_ARGS__;           \
    }
#define SMOE_CALL(isa, ...)                                  \
    ((isa) == ::smoe::AMX          ? amx::__VA_ARGS__        \
     : (isa) == ::smoe::AVX512BF16 ? avx512bf16::__VA_ARGS__ \
     : (isa) == ::smoe::AVX512VNNI ? avx512vnni::__VA_ARGS__ \
     : (isa) == ::smoe::AVX512     ? avx512::__VA_ARGS__     \
     : (isa) == ::smoe::AVXVNNI    ? avxvnni::__VA_ARGS__    \
     : (isa) == ::smoe::AVX2       ? avx2::__VA_ARGS__       \
                                   : portable::__VA_ARGS__)
#elif SMOE_ARM
#define SMOE_PER_ISA(...) \
    namespace portable {  \
    __VA_ARGS__;          \
    }                     \
    namespace neon {      \
    __VA_ARGS__;          \
    }                     \
    namespace neonbf16 {  \
    __VA_ARGS__;          \
    }
#define SMOE_CALL(isa, ...)                            \
    ((isa) == ::smoe::NEONBF16 ? neonbf16::__VA_ARGS__ \
     : (isa) == ::smoe::NEON   ? neon::__VA_ARGS__     \
                               : portable::__VA_ARGS__)
#else
#define SMOE_PER_ISA(...) \
    namespace portable {  \
    __VA_ARGS__;          \
    }
#define SMOE_CALL(isa, ...) (portable::__VA_ARGS__)
#endif

namespace smoe {

// fastest_isa() chooses among those that are available. NEON: of ARM, with dot products of bytes;
// NEONBF16: the same with products of matrices of bytes (I8MM) and of bfloat16 numbers (BF16).
enum Isa {
    PORTABLE = 0,
    AVX2 = 1,
    AVXVNNI = 2,
    AVX512 = 3,
    AVX512VNNI = 4,
    AVX512BF16 = 5,
    AMX = 6,
    NEON = 7,
    NEONBF16 = 8
};
// INT8: KV caches and weights; INT4: weights. CODED_BFLOAT16: weights (gemm/coded_weights.h).
enum Dtype { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3, CODED_BFLOAT16 = 64 };

// True if the library contains the kernels and both the CPU and the operating system support them.
bool isa_available(int isa);

// The available instruction set whose kernels are the fastest on this CPU.
int fastest_isa();

}  // namespace smoe
