// Time of AMX's tile instructions, in a core's first-level cache, again and again: how often a neighbour slows them
// down.
//
//     g++ -O2 -mamx-tile -mamx-bf16 tests/measure/kernels/tile_rates.cpp -o tile_rates && ./tile_rates
//
// Prints for four products, four loads, and both together: the least time in ticks of the time-stamp counter, and in
// how many of 100 samples a step took up to 1.5, 2.5 and 5 times as long, and longer.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr int SAMPLES = 20000, STEPS = 100, NUM_TILES = 8, STEP_BYTES = 4096;

alignas(64) char memory[2 * STEP_BYTES];

// Operand of LDTILECFG.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

void load(const char* from) {
    _tile_loadd(4, from, 64);
    _tile_loadd(5, from + 1024, 64);
    _tile_loadd(6, from + 2048, 128);
    _tile_loadd(7, from + 2112, 128);
}

void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

template <class Step>
void print(const char* name, Step&& step) {
    std::vector<double> ticks(SAMPLES);
    for (double& sample : ticks) {
        const uint64_t start = __rdtsc();
        for (int i = 0; i < STEPS; ++i) step(memory + i % 2 * STEP_BYTES);
        sample = static_cast<double>(__rdtsc() - start) / STEPS;
    }
    std::sort(ticks.begin(), ticks.end());
    std::printf("%-9s %4.0f ticks;", name, ticks[0]);
    double below = 0;
    for (const double factor : {1.5, 2.5, 5.0}) {
        const auto end = std::upper_bound(ticks.begin(), ticks.end(), factor * ticks[0]);
        const double share = 100.0 * static_cast<double>(end - ticks.begin()) / SAMPLES;
        std::printf(" up to %.1f x %5.1f %%,", factor, share - below);
        below = share;
    }
    std::printf(" longer %5.1f %%\n", 100 - below);
}

}  // namespace

int main() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return std::puts("this machine has no AMX"), 1;
    Shapes shapes;
    for (int i = 0; i < NUM_TILES; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    _tile_loadconfig(&shapes);
    print("products", [](const char*) { multiply(); });
    print("loads", load);
    print("both", [](const char* from) { load(from), multiply(); });
}
