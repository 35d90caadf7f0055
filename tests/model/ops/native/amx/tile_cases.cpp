// Runs AMX's tile instructions on random tiles and prints a digest of each result. Built twice: with the CPU's
// instructions and, with model/native/simd/emulated_amx.h in front, with those in software.
//
// Arguments: "cases SEED" prints lines "instruction numbers case digest"; "misuse NUMBER" does what has to end the
// process by a signal. Exit code 2: other arguments, or a CPU without the instructions.
#include <immintrin.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "runtime/isa.h"

namespace {

constexpr int MAX_ROWS = 16, MAX_UNITS = 16, CASES = 150;

struct Random {
    uint64_t state;

    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 32);
    }
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>(uint64_t{next()} * bound >> 32); }
    int between(int first, int last) { return first + static_cast<int>(below(last - first + 1)); }
};

// What the numbers of a case are like. All kinds are for bfloat16; bytes are ORDINARY only.
enum Kind { ORDINARY, ANY_FINITE, SUBNORMAL, TINY_PRODUCTS, HUGE_PRODUCTS, CANCELLING, INFINITE, NOT_NUMBERS };
const char* const KIND_NAMES[] = {"ordinary",      "any-finite", "subnormal", "tiny-products",
                                  "huge-products", "cancelling", "infinite",  "nan"};

// Upper 16 bits of a float32, of the kind that factors are.
uint32_t factor(Random& random, Kind kind) {
    const uint32_t sign = random.below(2) << 15, mantissa = random.below(128), chance = random.below(40);
    const auto number = [&](int exponent) { return sign | static_cast<uint32_t>(exponent) << 7 | mantissa; };
    switch (kind) {
        case ANY_FINITE: return number(random.between(0, 254));
        case SUBNORMAL: return number(chance < 10 ? 0 : chance < 20 ? 1 : random.between(110, 140));
        case TINY_PRODUCTS: return number(random.between(56, 72));
        case HUGE_PRODUCTS: return number(random.between(186, 192));
        case CANCELLING: return number(chance < 20 ? 140 : random.between(120, 128)) & ~(chance < 20 ? 127u : 0u);
        case INFINITE: return chance ? number(random.between(120, 133)) : sign | 0x7f80;
        case NOT_NUMBERS: return chance ? number(random.between(120, 133)) : sign | 0x7f80 | (mantissa ? mantissa : 1);
        default: return number(random.between(120, 133));
    }
}

// A float32 to add products to.
uint32_t start(Random& random, Kind kind) {
    const uint32_t sign = random.below(2) << 31, mantissa = random.below(1 << 23), chance = random.below(40);
    const auto number = [&](int exponent) { return sign | static_cast<uint32_t>(exponent) << 23 | mantissa; };
    switch (kind) {
        case ANY_FINITE: return number(random.between(0, 254));
        case SUBNORMAL:
        case TINY_PRODUCTS: return number(random.between(0, 20));
        case HUGE_PRODUCTS: return number(random.between(248, 254));
        case CANCELLING: return number(random.between(120, 156));
        case INFINITE: return chance ? number(random.between(100, 150)) : sign | 0x7f800000;
        case NOT_NUMBERS: return chance ? number(random.between(100, 150)) : sign | 0x7f800001 | mantissa;
        default: return number(random.between(120, 137));
    }
}

// Shapes of all registers, as LDTILECFG reads them.
struct Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int num_rows, int units) {
        rows[tile] = static_cast<uint8_t>(num_rows);
        row_bytes[tile] = static_cast<uint16_t>(4 * units);
    }
};

// Rows of up to 64 bytes, with gaps between them that no instruction may change, from any address on.
struct Memory {
    uint8_t bytes[MAX_ROWS * 128 + 64] = {};
    int64_t stride;
    int shift;

    explicit Memory(Random& random) : stride(random.between(64, 128)), shift(random.between(0, 63)) {}
    uint8_t* first() { return bytes + shift; }
    template <class Next>
    void fill(int rows, int units, Next next) {
        for (int row = 0; row < rows; ++row)
            for (int unit = 0; unit < units; ++unit) {
                const uint32_t word = next();
                std::memcpy(first() + row * stride + 4 * unit, &word, 4);
            }
    }
};

void configure(const Shapes& shapes) {
    asm volatile("" ::: "memory");
    _tile_loadconfig(&shapes);
}

// FNV-1a over all bytes, where every NaN is the same one: the manual leaves open which of several is the result.
uint64_t digest(Memory& memory, int rows, int units, bool is_float) {
    if (is_float)
        for (int row = 0; row < rows; ++row)
            for (int unit = 0; unit < units; ++unit) {
                uint32_t word;
                uint8_t* at = memory.first() + row * memory.stride + 4 * unit;
                std::memcpy(&word, at, 4);
                if ((word & 0x7fffffff) > 0x7f800000) word = 0x7fc00000;
                std::memcpy(at, &word, 4);
            }
    uint64_t hash = 14695981039346656037u;
    for (uint8_t byte : memory.bytes) hash = (hash ^ byte) * 1099511628211u;
    return hash;
}

// One or two products of random shapes, added to tiles from memory or to zeros.
template <class Multiply>
void print_case(const char* name, Kind kind, int number, Random& random, Multiply multiply) {
    const bool is_float = name[0] == 'b';
    const int rows = random.between(1, MAX_ROWS), columns = random.between(1, MAX_UNITS);
    const int depth = random.between(1, MAX_UNITS), num_products = random.between(1, 2);
    Shapes shapes;
    shapes.set(0, rows, columns);
    shapes.set(7, rows, columns);
    shapes.set(3, rows, depth);
    shapes.set(5, depth, columns);
    Memory left(random), right(random), sums(random), others(random);
    const auto numbers = [&] {
        if (!is_float) return random.next();
        const uint32_t first = factor(random, kind);
        return first | factor(random, kind) << 16;
    };
    sums.fill(rows, columns, [&] { return is_float ? start(random, kind) : random.next(); });
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80 | random.below(4) << 13 | random.below(2) << 6);  // any rounding; subnormals are zeros or not
    configure(shapes);
    _tile_loadd(0, sums.first(), sums.stride);
    _tile_zero(7);
    for (int i = 0; i < num_products; ++i) {
        left.fill(rows, depth, numbers);
        right.fill(depth, columns, numbers);
        asm volatile("" ::: "memory");
        _tile_loadd(3, left.first(), left.stride);
        _tile_stream_loadd(5, right.first(), right.stride);
        multiply();
    }
    _tile_stored(0, sums.first(), sums.stride);
    _tile_stored(7, others.first(), others.stride);
    asm volatile("" ::: "memory");
    _tile_release();
    _mm_setcsr(saved);
    std::printf("%s %s %d %016" PRIx64 " %016" PRIx64 "\n", name, KIND_NAMES[kind], number,
                digest(sums, rows, columns, is_float), digest(others, rows, columns, is_float));
}

template <class Multiply>
void print_cases(const char* name, std::initializer_list<Kind> kinds, uint64_t seed, Multiply multiply) {
    Random random{seed};
    for (int number = 0; number < CASES; ++number)
        for (Kind kind : kinds) print_case(name, kind, number, random, multiply);
}

void print_all(uint64_t seed) {
    const std::initializer_list<Kind> kinds = {ORDINARY,      ANY_FINITE, SUBNORMAL, TINY_PRODUCTS,
                                               HUGE_PRODUCTS, CANCELLING, INFINITE,  NOT_NUMBERS};
    print_cases("bf16", kinds, seed, [] {
        _tile_dpbf16ps(0, 3, 5);
        _tile_dpbf16ps(7, 3, 5);
    });
    print_cases("signed-signed", {ORDINARY}, seed, [] {
        _tile_dpbssd(0, 3, 5);
        _tile_dpbssd(7, 3, 5);
    });
    print_cases("signed-unsigned", {ORDINARY}, seed, [] {
        _tile_dpbsud(0, 3, 5);
        _tile_dpbsud(7, 3, 5);
    });
    print_cases("unsigned-signed", {ORDINARY}, seed, [] {
        _tile_dpbusd(0, 3, 5);
        _tile_dpbusd(7, 3, 5);
    });
    print_cases("unsigned-unsigned", {ORDINARY}, seed, [] {
        _tile_dpbuud(0, 3, 5);
        _tile_dpbuud(7, 3, 5);
    });
}

// Uses of tiles that the CPU refuses.
void misuse(int number) {
    Shapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, 8, 8);
    if (number == 0) shapes.palette = 2;
    if (number == 1) shapes.reserved[3] = 1;
    if (number == 2) shapes.set(4, 17, 8);
    if (number == 3) shapes.set(4, 8, 17);
    if (number == 4) shapes.set(4, 8, 0);
    if (number == 5) shapes.set(8, 8, 8);
    if (number == 6) shapes.set(4, 0, 0);
    if (number == 7) shapes.set(1, 7, 8);  // rows of the left tile, not of the sums
    if (number == 8) shapes.set(2, 8, 7);  // columns of the right tile
    if (number == 9) shapes.set(2, 7, 8);  // depth of the right tile
    configure(shapes);
    if (number == 6) _tile_zero(4);
    if (number == 10) _tile_release();
    if (number % 2) {
        _tile_dpbf16ps(0, 1, 2);
    } else {
        _tile_dpbsud(0, 1, 2);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3 || !smoe::isa_available(smoe::AMX)) return 2;
    const uint64_t number = std::strtoull(arguments[2], nullptr, 10);
    if (!std::strcmp(arguments[1], "misuse")) {
        misuse(static_cast<int>(number));
        return 0;
    }
    if (std::strcmp(arguments[1], "cases")) return 2;
    print_all(number);
    return 0;
}
