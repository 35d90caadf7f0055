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

// How much further than asked the first step is: of words that a product unpacks, and of others, which are read at
// memory's full rate (decision 121).
constexpr int FURTHER_WORDS = 1024, NO_FURTHER = 0;

// Prefetch a line of a stream at this place among the instructions. GCC moves __builtin_prefetch() to the start of
// straight code. On Intel's AVX-512 the stream is fetched in two steps: from memory to the second-level cache, which
// waits for more lines at once than the first, FURTHER words after p; and from there 2 KB before p (decision 114).
template <int FURTHER = FURTHER_WORDS>
inline void prefetch_in_place(const uint32_t* p) {
#if defined(__x86_64__)
    if constexpr (IS_FOR_INTEL) {
        asm volatile("prefetcht1 %0" : : "m"(*(p + FURTHER)));
        p -= NEARER_WORDS;
    }
    asm volatile("prefetcht0 %0" : : "m"(*p));
#else
    __builtin_prefetch(p);
#endif
}

// Prefetch the lines of WORDS words.
template <int WORDS, int FURTHER = FURTHER_WORDS>
[[gnu::always_inline]] inline void prefetch_lines(const uint32_t* words) {
#pragma GCC unroll 8
    for (int at = 0; at < WORDS; at += LINE_WORDS) prefetch_in_place<FURTHER>(words + at);
}

// Prefetch the line of p into the second-level cache, at this place among the instructions.
[[gnu::always_inline]] inline void prefetch_to_second_level(const void* p) {
#if defined(__x86_64__)
    asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(p)));
#else
    __builtin_prefetch(p, 0, 2);
#endif
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
        prefetch_to_second_level(at_);
        at_ += bytes_;
    }

  private:
    const char* at_;
    const int64_t bytes_;  // per step
};

// Prefetches a share into the second-level cache, evenly, from its RUNS equal runs in turn. Were one page read line
// after line, the hardware would fetch its lines as well, and loads would wait longer for both (decision 121).
class InterleavedPrefetch {
  public:
    static constexpr int RUNS = 4, MAX_PER_STEP = 16;

    InterleavedPrefetch(const PrefetchShare& share, int64_t steps)
        : at_(share.first), left_((share.words + RUNS * LINE_WORDS - 1) / (RUNS * LINE_WORDS)),
          run_words_(left_ * LINE_WORDS), steps_(steps) {}

    // Lines to prefetch in each step from now on so that all are: a multiple of RUNS, at most MAX_PER_STEP.
    int per_step() const {
        int per_step = 0;
        while (per_step < MAX_PER_STEP && left_ * RUNS > per_step * steps_) per_step += RUNS;
        return per_step;
    }

    // Prefetch part PART of the PARTS nearly equal parts of a step.
    template <int PER_STEP, int PART, int PARTS>
    [[gnu::always_inline]] inline void part() const {
#pragma GCC unroll 2
        for (int i = PER_STEP * PART / PARTS; i < PER_STEP * (PART + 1) / PARTS; ++i)
            prefetch_to_second_level(at_ + i % RUNS * run_words_ + i / RUNS * LINE_WORDS);
    }

    // End a step.
    template <int PER_STEP>
    [[gnu::always_inline]] inline void next_step() {
        --steps_;
        left_ -= PER_STEP / RUNS;
        at_ += PER_STEP / RUNS * LINE_WORDS;
    }

  private:
    const uint32_t* at_;  // in the first run
    int64_t left_;        // lines of each run
    const int64_t run_words_;
    int64_t steps_;
};

}  // namespace SMOE_ISA
}  // namespace smoe
