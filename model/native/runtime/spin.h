// Waiting without giving up the core, for waits that are mostly shorter than waking a thread takes.
#pragma once

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace smoe {

// Long enough to bridge the gap between two calls of one step; short enough to yield the core to other processes.
constexpr auto SPIN_TIME = std::chrono::microseconds(50);

inline void pause_core() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // a spinning core waits as long as with x86's pause; "yield" returns at once
#endif
}

// Spin until the condition holds; return false after `time`.
template <class Condition>
bool spin(Condition condition, std::chrono::microseconds time = SPIN_TIME) {
    const auto end = std::chrono::steady_clock::now() + time;
    do {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            pause_core();
        }
        std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
    return condition();
}

}  // namespace smoe
