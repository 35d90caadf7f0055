// Compares products of random matrices on ARM. int8, int4 and block formats: every instruction set with the portable
// one. bfloat16 on `neonbf16`: with sums in software, in the roundings of BFDOT; FPCR.EBF is set meanwhile, which
// changes these roundings where the CPU has FEAT_EBF16.
//
// Argument: a seed. Prints a line for each product with other bits. Exit code 1: other bits, or a control register that
// was not left as it was.
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "gemm/block_formats.h"
#include "smoe_native.h"

namespace {

using smoe::BFLOAT16;
using smoe::INT4;
using smoe::INT8;

constexpr uint64_t EBF = 1 << 13;
constexpr int MAX_ROWS = 14, MAX_OUTPUTS = 75;

struct Random {
    uint64_t state;

    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 32);
    }
    int between(int first, int last) { return first + static_cast<int>(next() % (last - first + 1)); }
    // Upper 16 bits of a float32, 2^-20 .. 2^4 in magnitude: some sums cancel, all of them are rounded.
    uint16_t bfloat16() { return static_cast<uint16_t>((next() & 0x807f) | between(107, 130) << 7); }
};

struct Shape {
    int64_t rows, outputs, K;
};

uint64_t control_register() {
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
}

std::vector<uint16_t> random_numbers(Random& random, int64_t count) {
    std::vector<uint16_t> numbers(count);
    for (uint16_t& number : numbers) number = random.bfloat16();
    return numbers;
}

struct Packed {
    std::vector<uint8_t> panels;
    smoe_matrix matrix;

    Packed(int format, const Shape& shape) : panels((shape.outputs + 31) / 32 * smoe_panel_size(format, shape.K) + 64) {
        auto* start = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64) % 64;
        matrix = {start, shape.outputs, smoe_panel_size(format, shape.K), format, nullptr};
    }
    void* to() { return const_cast<void*>(matrix.panels); }
};

std::vector<float> multiply(smoe_pool* pool, int isa, const std::vector<uint16_t>& x, const Packed& packed,
                            const Shape& shape) {
    std::vector<float> y(shape.rows * shape.outputs);
    if (smoe_linear(pool, isa, BFLOAT16, x.data(), &packed.matrix, 1, y.data(), shape.rows, shape.K, 1, nullptr, 0, 0))
        std::abort();
    return y;
}

// Return 1 and print the product if any bit differs.
int differs(const std::vector<float>& found, const std::vector<float>& expected, int isa, int format,
            const Shape& shape) {
    if (!std::memcmp(found.data(), expected.data(), found.size() * sizeof(float))) return 0;
    std::printf("isa %d format %d: %" PRId64 " rows, %" PRId64 " outputs, K %" PRId64 "\n", isa, format, shape.rows,
                shape.outputs, shape.K);
    return 1;
}

int compare_with_portable(smoe_pool* pool, Random& random, const Packed& packed, const Shape& shape) {
    const std::vector<uint16_t> x = random_numbers(random, shape.rows * shape.K);
    const std::vector<float> expected = multiply(pool, smoe::PORTABLE, x, packed, shape);
    int different = 0;
    for (int isa : {smoe::NEON, smoe::NEONBF16})
        different |= differs(multiply(pool, isa, x, packed, shape), expected, isa, packed.matrix.format, shape);
    return different;
}

// Random blocks with scales and minima of a usual size: they start at these bytes of a block.
struct Scales {
    int format;
    std::vector<int> float16, float32;
};

std::vector<uint8_t> random_blocks(Random& random, const Scales& scales, const Shape& shape) {
    const smoe::BlockLayout& layout = smoe::block_layout(scales.format);
    std::vector<uint8_t> bytes(shape.outputs * shape.K / layout.numbers * layout.file_bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
    for (size_t block = 0; block < bytes.size(); block += layout.file_bytes) {
        for (int at : scales.float16) bytes[block + at + 1] = 0x20 | (bytes[block + at + 1] & 0x83);
        for (int at : scales.float32) bytes[block + at + 3] = 0x3d;
        if (scales.format >= smoe::INT8_G32 && scales.format <= smoe::INT8_G128) bytes[block + 5] = 0;  // z <= 255
    }
    return bytes;
}

int compare_blocks(smoe_pool* pool, Random& random, const Scales& scales) {
    const int numbers = smoe::block_layout(scales.format).numbers;
    int different = 0;
    for (int i = 0; i < 4; ++i) {
        const Shape shape{random.between(1, MAX_ROWS), random.between(1, MAX_OUTPUTS),
                          int64_t{numbers} * random.between(1, 512 / numbers)};
        Packed packed(scales.format, shape);
        smoe_pack_blocks(pool, scales.format, random_blocks(random, scales, shape).data(), packed.to(),
                         packed.matrix.stride, shape.outputs, shape.K);
        different |= compare_with_portable(pool, random, packed, shape);
    }
    return different;
}

// Return a + b rounded to odd: an inexact result is that neighbour of the sum whose last bit is 1.
float add_to_odd(float a, float b) {
    const float sum = a + b, of_b = sum - a, error = (a - (sum - of_b)) + (b - of_b);  // a + b = sum + error
    uint32_t word;
    std::memcpy(&word, &sum, sizeof word);
    if (error == 0 || word & 1) return sum;
    const float infinity = std::numeric_limits<float>::infinity();
    return std::nextafter(sum, error > 0 ? infinity : -infinity);
}

float widened(uint16_t number) {
    const uint32_t word = uint32_t{number} << 16;
    float wide;
    std::memcpy(&wide, &word, sizeof wide);
    return wide;
}

// Sum of the products of two rows of K numbers, pair by pair; products of bfloat16 are exact.
float dot_product(const uint16_t* x, const uint16_t* w, int64_t K) {
    float sum = 0;
    for (int64_t k = 0; k < K; k += 2) {
        const float first = widened(x[k]) * widened(w[k]);
        const float second = k + 1 < K ? widened(x[k + 1]) * widened(w[k + 1]) : 0;
        sum = add_to_odd(sum, add_to_odd(first, second));
    }
    return sum;
}

int compare_bfloat16(smoe_pool* pool, Random& random, const Shape& shape) {
    const std::vector<uint16_t> weight = random_numbers(random, shape.outputs * shape.K);
    const std::vector<uint16_t> x = random_numbers(random, shape.rows * shape.K);
    Packed packed(BFLOAT16, shape);
    smoe_pack(pool, smoe::PORTABLE, BFLOAT16, BFLOAT16, weight.data(), packed.to(), packed.matrix.stride, shape.outputs,
              shape.K);
    std::vector<float> expected(shape.rows * shape.outputs);
    for (int64_t m = 0; m < shape.rows; ++m)
        for (int64_t n = 0; n < shape.outputs; ++n)
            expected[m * shape.outputs + n] = dot_product(&x[m * shape.K], &weight[n * shape.K], shape.K);
    return differs(multiply(pool, smoe::NEONBF16, x, packed, shape), expected, smoe::NEONBF16, BFLOAT16, shape);
}

int compare_own_formats(smoe_pool* pool, Random& random, int64_t rows) {
    const Shape shape{rows, random.between(1, MAX_OUTPUTS), random.between(1, 300)};
    int different = compare_bfloat16(pool, random, shape);
    const std::vector<uint16_t> weight = random_numbers(random, shape.outputs * shape.K);
    for (int format : {INT8, INT4}) {
        Packed packed(format, shape);
        smoe_pack(pool, smoe::PORTABLE, BFLOAT16, format, weight.data(), packed.to(), packed.matrix.stride,
                  shape.outputs, shape.K);
        different |= compare_with_portable(pool, random, packed, shape);
    }
    return different;
}

}  // namespace

int main(int, char** arguments) {
    using namespace smoe;
    Random random{std::strtoull(arguments[1], nullptr, 10)};
    const uint64_t control = control_register() | EBF;
    asm volatile("msr fpcr, %0" : : "r"(control));
    const uint64_t before = control_register();   // without the bit if the CPU has no FEAT_EBF16
    smoe_pool* const pool = smoe_pool_create(2);  // its threads begin with this thread's control register
    const Scales all_scales[] = {
        {Q4_0, {0}, {}},           {Q4_1, {0, 2}, {}},        {Q5_0, {0}, {}},
        {Q5_1, {0, 2}, {}},        {Q8_0, {0}, {}},           {Q4_K, {0, 2}, {}},
        {Q5_K, {0, 2}, {}},        {Q6_K, {208}, {}},         {Q2_K, {80, 82}, {}},
        {Q3_K, {108}, {}},         {IQ4_NL, {0}, {}},         {IQ4_XS, {0}, {}},
        {INT4_G32, {}, {0}},       {INT4_G64, {}, {0}},       {INT4_G128, {}, {0}},
        {INT8_G32, {}, {0}},       {INT8_G64, {}, {0}},       {INT8_G128, {}, {0}},
        {AFFINE4_G32, {}, {0, 4}}, {AFFINE4_G64, {}, {0, 4}}, {AFFINE4_G128, {}, {0, 4}},
        {AFFINE8_G32, {}, {0, 4}}, {AFFINE8_G64, {}, {0, 4}}, {AFFINE8_G128, {}, {0, 4}},
        {IQ3_S, {0}, {}},          {IQ3_XXS, {0}, {}},        {IQ2_S, {0}, {}},
        {IQ2_XS, {0}, {}},         {IQ2_XXS, {0}, {}},
    };
    int different = 0;
    for (int64_t rows = 1; rows <= MAX_ROWS; ++rows) different |= compare_own_formats(pool, random, rows);
    for (const Scales& scales : all_scales) different |= compare_blocks(pool, random, scales);
    smoe_pool_destroy(pool);
    if (control_register() != before) std::printf("control register %" PRIx64 "\n", control_register());
    return different || control_register() != before;
}
