#include "roofline/roofline.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "gemm/amx_tiles.h"
#include "runtime/thread_pool.h"
#include "simd/integer_dot_products.h"
#include "simd/matrix_products.h"
#include "simd/vec.h"

#if SMOE_X86
#define SMOE_REGISTER(value) "+x"(value)
#else
#define SMOE_REGISTER(value) "+w"(value)
#endif

namespace smoe {
namespace SMOE_ISA {
namespace {

constexpr int64_t BYTES_PER_TASK = 1 << 20;
constexpr int64_t PREFETCH_BYTES = 4096;
constexpr int CHAINS = 12;            // more than latency times issue rate; all of them fit into registers
constexpr int TASKS_PER_THREAD = 16;  // so that other threads take over the work of a delayed one

// Several accumulators, so that no addition waits for the previous one.
uint32_t sum_words(const char* from, int64_t num_bytes) {
    constexpr int64_t WIDTH = sizeof(Words), STRIDE = 8 * WIDTH;
    Words sums[8] = {};
    int64_t at = 0;
    for (; at + STRIDE <= num_bytes; at += STRIDE) {
        for (int64_t line = 0; line < STRIDE; line += 64) __builtin_prefetch(from + at + PREFETCH_BYTES + line);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            Words words;
            std::memcpy(&words, from + at + i * WIDTH, WIDTH);
            sums[i] += words;
        }
    }
    Words all{};
    for (const Words& sum : sums) all += sum;
    uint32_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += all[lane];
    for (; at < num_bytes; ++at) total += static_cast<unsigned char>(from[at]);
    return total;
}

// Run many rounds of multiply-adds; return the number of operations, two per multiply-add. A Step has a register type,
// the multiply-adds per instruction, and the instruction acc += a * a. The empty assembler statement makes the compiler
// assume that each chain's value is used, in a register.
template <class Step>
struct InVectors {
    static int64_t multiply(int64_t rounds) {
        typename Step::Register a{}, chains[CHAINS] = {};
        asm volatile("" : SMOE_REGISTER(a));
        for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; ++i) chains[i] = Step::add(a, chains[i]);
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; ++i) asm volatile("" : SMOE_REGISTER(chains[i]));
        }
        return rounds * CHAINS * Step::WIDTH * 2;
    }
};

struct Float32Step {
    using Register = Vec;
    static constexpr int WIDTH = LANES;
    static Register add(Register a, Register acc) { return fma(a, a, acc); }
};
using Float32 = InVectors<Float32Step>;

#if defined(__AMX_TILE__)

template <int FORMAT>
struct InTiles {
    static int64_t multiply(int64_t rounds) {
        AmxTiles registers;
        registers.shape_square(MAX_TILE_ROWS);
        for (int64_t round = 0; round < rounds; ++round) add_products<FORMAT, true>();
        return rounds * MAX_TILE_ROWS * PANEL * LINE * (FORMAT == INT8 ? 4 : 2) * 2;
    }
};
using Bfloat16 = InTiles<BFLOAT16>;
using Int8 = InTiles<INT8>;

#else

#if SMOE_MATRIX_PRODUCTS
template <class Number, int PRODUCTS>
struct MatrixStep {
    using Register = Number;
    static constexpr int WIDTH = PRODUCTS;
    static Register add(Register a, Register acc) { return add_matrix_product(acc, (Words)a, (Words)a); }
};
using Bfloat16 = InVectors<MatrixStep<Vec, 4 * LANES> >;
using Int8 = InVectors<MatrixStep<Words, 8 * LANES> >;
#elif defined(__AVX512BF16__)
struct Bfloat16Step {
    using Register = Vec;
    static constexpr int WIDTH = 2 * LANES;
    static Register add(Register a, Register acc) {
        return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)a);
    }
};
using Bfloat16 = InVectors<Bfloat16Step>;
#else
using Bfloat16 = Float32;  // these instruction sets widen bfloat16 and multiply float32
#endif

#if SMOE_DOT_BYTES && !SMOE_MATRIX_PRODUCTS
struct Int8Step {
    using Register = Words;
    static constexpr int WIDTH = 4 * LANES;
    static Register add(Register a, Register acc) { return dot_bytes(acc, a, a); }
};
using Int8 = InVectors<Int8Step>;
#endif

#endif

template <class Kind>
int64_t multiply_on_all(Pool& pool, int64_t rounds) {
    const int64_t per_task = std::max<int64_t>(1, rounds / TASKS_PER_THREAD);
    std::atomic<int64_t> operations{0};
    pool.parallel_for(int64_t{TASKS_PER_THREAD} * pool.threads(),
                      [&](int64_t) { operations += Kind::multiply(per_task); });
    return operations;
}

}  // namespace

uint32_t read_all(Pool& pool, const void* buffer, int64_t num_bytes) {
    std::atomic<uint32_t> total{0};
    const char* from = static_cast<const char*>(buffer);
    pool.parallel_for((num_bytes + BYTES_PER_TASK - 1) / BYTES_PER_TASK, [&](int64_t task) {
        const int64_t first = task * BYTES_PER_TASK;
        total += sum_words(from + first, std::min(BYTES_PER_TASK, num_bytes - first));
    });
    return total;
}

int64_t peak_operations(Pool& pool, int arithmetic, int64_t rounds) {
    if (arithmetic == MULTIPLY_FLOAT32) return multiply_on_all<Float32>(pool, rounds);
    if (arithmetic == MULTIPLY_BFLOAT16) return multiply_on_all<Bfloat16>(pool, rounds);
#if SMOE_DOT_BYTES
    if (arithmetic == MULTIPLY_INT8) return multiply_on_all<Int8>(pool, rounds);
#endif
    return 0;
}

}  // namespace SMOE_ISA
}  // namespace smoe
