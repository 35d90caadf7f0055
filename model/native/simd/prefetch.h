// Prefetches of lines, which have 64 bytes. Included by kernel files only.
#pragma once

#include <cstdint>

namespace smoe {
namespace SMOE_ISA {

constexpr int LINE_WORDS = 16;

// Distance at which AVX2 reads memory fastest where one pass reads it in the order of the addresses: 8 KB cost 10 to 15
// % of the bandwidth (decision 102).
constexpr int WORDS_AHEAD_IN_ORDER = 40 * LINE_WORDS;

// Sets of AVX-512 that no CPU of AMD's runs without choosing: those have BF16 and no AMX.
#if defined(__AVX512F__) && (!defined(__AVX512BF16__) || defined(__AMX_TILE__))
constexpr bool IS_FOR_INTEL = true;
#else
constexpr bool IS_FOR_INTEL = false;
#endif

// Prefetch a line of a stream at this place among the instructions. GCC moves __builtin_prefetch() to the start of
// straight code. On Intel the stream is fetched in two steps: from memory to the second-level cache, which waits for
// more lines at once than the first, 4 KB after p; and from there 2 KB before p (decision 114).
inline void prefetch_in_place(const uint32_t* p) {
#if defined(__x86_64__)
    if constexpr (IS_FOR_INTEL) {
        asm volatile("prefetcht1 %0" : : "m"(*(p + 1024)));
        p -= 512;
    }
    asm volatile("prefetcht0 %0" : : "m"(*p));
#else
    __builtin_prefetch(p);
#endif
}

// Prefetch the lines of WORDS words.
template <int WORDS>
[[gnu::always_inline]] inline void prefetch_lines(const uint32_t* words) {
#pragma GCC unroll 8
    for (int at = 0; at < WORDS; at += LINE_WORDS) prefetch_in_place(words + at);
}

}  // namespace SMOE_ISA
}  // namespace smoe
