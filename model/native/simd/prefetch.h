// Prefetches of lines, which have 64 bytes. Included by kernel files only.
#pragma once

#include <cstdint>

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

constexpr int LINE_WORDS = 16;

// Distance at which AVX2 reads memory fastest where one pass reads it in the order of the addresses: 8 KB cost 10 to 15
// % of the bandwidth (decision 102).
constexpr int WORDS_AHEAD_IN_ORDER = 40 * LINE_WORDS;

// How much nearer than asked the second of two steps of a prefetch is.
constexpr int NEARER_WORDS = IS_FOR_INTEL ? 512 : 0;

// Prefetch a line of a stream at this place among the instructions. GCC moves __builtin_prefetch() to the start of
// straight code. On Intel's AVX-512 the stream is fetched in two steps: from memory to the second-level cache, which
// waits for more lines at once than the first, 4 KB after p; and from there 2 KB before p (decision 114).
inline void prefetch_in_place(const uint32_t* p) {
#if defined(__x86_64__)
    if constexpr (IS_FOR_INTEL) {
        asm volatile("prefetcht1 %0" : : "m"(*(p + 1024)));
        p -= NEARER_WORDS;
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

// Words that a loop prefetches while it does other work.
struct PrefetchShare {
    const uint32_t* first = nullptr;
    int64_t words = 0;
};

// Prefetches a share into the second-level cache: an equal part, about a line or less, in each of `steps` > 0 steps.
class PacedPrefetch {
  public:
    PacedPrefetch(const PrefetchShare& share, int64_t steps)
        : at_(reinterpret_cast<const char*>(share.first)), bytes_((share.words * 4 + steps - 1) / steps) {}

    [[gnu::always_inline]] void step() {
#if defined(__x86_64__)
        asm volatile("prefetcht1 %0" : : "m"(*at_));
#else
        __builtin_prefetch(at_, 0, 2);
#endif
        at_ += bytes_;
    }

  private:
    const char* at_;
    const int64_t bytes_;  // per step
};

}  // namespace SMOE_ISA
}  // namespace smoe
