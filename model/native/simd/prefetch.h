// Prefetches of lines, which have 64 bytes. Included by kernel files only.
#pragma once

#include <cstdint>

namespace smoe {
namespace SMOE_ISA {

constexpr int LINE_WORDS = 16;

// Distance at which AVX2 reads memory fastest where one pass reads it in the order of the addresses: 8 KB cost 10 to 15
// % of the bandwidth (decision 102).
constexpr int WORDS_AHEAD_IN_ORDER = 40 * LINE_WORDS;

// Prefetch a line at this place among the instructions. GCC moves __builtin_prefetch() to the start of straight code.
inline void prefetch_in_place(const uint32_t* p) {
#if defined(__x86_64__)
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
