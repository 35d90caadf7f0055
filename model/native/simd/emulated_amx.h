// AMX's tile instructions in software, to test the AMX kernels on CPUs without them. With SMOE_EMULATE_AMX the build
// includes this file ahead of every AMX kernel file, where it replaces the compiler's intrinsics. Needs AVX512BW.
//
// Written from the pseudocode of LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE, TDPBF16PS and TDPBSSD in
// Intel's Software Developer's Manual. What raises an exception there ends in a trap here. A start row other than 0,
// which only the operating system needs, is refused.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace smoe {
namespace emulated_amx {

constexpr int NUM_TILES = 8, MAX_ROWS = 16, MAX_ROW_BYTES = 64;

struct Tile {
    int rows, row_bytes;  // zeros: not configured
    alignas(64) uint8_t bytes[MAX_ROWS][MAX_ROW_BYTES];
};

// Memory layout of LDTILECFG's operand.
struct Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

inline thread_local Tile tiles[NUM_TILES];

inline void require(bool is_allowed) {
    if (!is_allowed) __builtin_trap();
}

inline Tile& tile(int number) {
    require(number >= 0 && number < NUM_TILES && tiles[number].rows > 0);
    return tiles[number];
}

inline void release() { std::memset(tiles, 0, sizeof tiles); }

inline void load_config(const void* from) {
    Shapes shapes;
    std::memcpy(&shapes, from, sizeof shapes);
    release();
    if (shapes.palette == 0) return;
    require(shapes.palette == 1 && shapes.start_row == 0);
    for (uint8_t byte : shapes.reserved) require(byte == 0);
    for (int i = 0; i < 16; ++i) {
        const int rows = shapes.rows[i], row_bytes = shapes.row_bytes[i];
        require(rows <= MAX_ROWS && row_bytes <= MAX_ROW_BYTES && (rows == 0) == (row_bytes == 0));
        require(rows == 0 || i < NUM_TILES);
        if (i >= NUM_TILES) continue;
        tiles[i].rows = rows;
        tiles[i].row_bytes = row_bytes;
    }
}

inline void zero(int number) { std::memset(tile(number).bytes, 0, sizeof(Tile::bytes)); }

inline void load(int number, const void* from, int64_t stride) {
    zero(number);
    Tile& to = tile(number);
    for (int row = 0; row < to.rows; ++row)
        std::memcpy(to.bytes[row], static_cast<const uint8_t*>(from) + row * stride, to.row_bytes);
}

inline void store(int number, void* to, int64_t stride) {
    const Tile& from = tile(number);
    for (int row = 0; row < from.rows; ++row)
        std::memcpy(static_cast<uint8_t*>(to) + row * stride, from.bytes[row], from.row_bytes);
}

// Unit k of a row, for each of 16 columns.
inline __m512i broadcast_unit(const uint8_t* row, int k) {
    int32_t unit;
    std::memcpy(&unit, row + 4 * k, sizeof unit);
    return _mm512_set1_epi32(unit);
}

// Pairs of bfloat16: first numbers and second numbers are summed separately by fused multiply-adds.
struct PairProducts {
    static __m512 first(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
    static __m512 second(__m512i pairs) {
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static __m512i add(__m512i sum, const uint8_t* left, const Tile& right) {
        __m512 firsts = _mm512_setzero_ps(), seconds = firsts;
        for (int k = 0; k < right.rows; ++k) {
            const __m512i a = broadcast_unit(left, k), b = _mm512_loadu_si512(right.bytes[k]);
            firsts = _mm512_fmadd_ps(first(a), first(b), firsts);
            seconds = _mm512_fmadd_ps(second(a), second(b), seconds);
        }
        return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(sum), _mm512_add_ps(firsts, seconds)));
    }
};

// Four bytes each, signed or not; sums wrap modulo 2^32.
template <bool LEFT_SIGNED, bool RIGHT_SIGNED>
struct ByteProducts {
    template <bool SIGNED>
    static __m512i even(__m512i bytes) {
        return odd<SIGNED>(_mm512_slli_epi16(bytes, 8));
    }
    template <bool SIGNED>
    static __m512i odd(__m512i bytes) {
        return SIGNED ? _mm512_srai_epi16(bytes, 8) : _mm512_srli_epi16(bytes, 8);
    }
    static __m512i add(__m512i sum, const uint8_t* left, const Tile& right) {
        for (int k = 0; k < right.rows; ++k) {
            const __m512i a = broadcast_unit(left, k), b = _mm512_loadu_si512(right.bytes[k]);
            const __m512i evens = _mm512_madd_epi16(even<LEFT_SIGNED>(a), even<RIGHT_SIGNED>(b));
            const __m512i odds = _mm512_madd_epi16(odd<LEFT_SIGNED>(a), odd<RIGHT_SIGNED>(b));
            sum = _mm512_add_epi32(sum, _mm512_add_epi32(evens, odds));
        }
        return sum;
    }
};

// sums [M, N] += left [M, K] times right [K, N], in units of four bytes.
template <class Products>
inline void multiply(int sums, int left, int right) {
    Tile& c = tile(sums);
    const Tile &a = tile(left), &b = tile(right);
    require(&c != &a && &a != &b && &b != &c);
    require(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows && c.row_bytes % 4 == 0);
    constexpr unsigned ROUNDING = 0x9fc0;  // to nearest even, subnormal numbers are zeros, no exceptions
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(ROUNDING);
    for (int row = 0; row < c.rows; ++row)  // no instruction reads what is written behind row_bytes
        _mm512_storeu_si512(c.bytes[row], Products::add(_mm512_loadu_si512(c.bytes[row]), a.bytes[row], b));
    _mm_setcsr(saved);
}

}  // namespace emulated_amx
}  // namespace smoe

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig(from) ::smoe::emulated_amx::load_config(from)
#define _tile_release() ::smoe::emulated_amx::release()
#define _tile_zero(tile) ::smoe::emulated_amx::zero(tile)
#define _tile_loadd(tile, from, stride) ::smoe::emulated_amx::load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) ::smoe::emulated_amx::load(tile, from, stride)
#define _tile_stored(tile, to, stride) ::smoe::emulated_amx::store(tile, to, stride)
#define _tile_dpbf16ps(sums, left, right) \
    ::smoe::emulated_amx::multiply<::smoe::emulated_amx::PairProducts>(sums, left, right)
#define SMOE_MULTIPLY_BYTES(left_signed, right_signed, ...) \
    ::smoe::emulated_amx::multiply<::smoe::emulated_amx::ByteProducts<left_signed, right_signed>>(__VA_ARGS__)
#define _tile_dpbssd(sums, left, right) SMOE_MULTIPLY_BYTES(true, true, sums, left, right)
#define _tile_dpbsud(sums, left, right) SMOE_MULTIPLY_BYTES(true, false, sums, left, right)
#define _tile_dpbusd(sums, left, right) SMOE_MULTIPLY_BYTES(false, true, sums, left, right)
#define _tile_dpbuud(sums, left, right) SMOE_MULTIPLY_BYTES(false, false, sums, left, right)
