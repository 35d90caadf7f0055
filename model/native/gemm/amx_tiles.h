// AMX tile registers. Included by kernel files only.
//
// One instruction multiplies LINE units of up to 16 rows by LINE units of 16 columns. In bfloat16 it sums the units'
// first halves and their second halves separately, k ascending, then adds both to the accumulator (Intel, Software
// Developer's Manual, TDPBF16PS), for any number of rows. In int8 it is exact.
#pragma once

#if defined(__AMX_TILE__)

#include <initializer_list>

#include "gemm/packed_row_layout.h"
#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// The compiler does not know which memory tile instructions read.
inline void compiler_barrier() { asm volatile("" ::: "memory"); }

// Owns this thread's tile registers while it lives; at most one object per thread at a time.
class AmxTiles {
  public:
    AmxTiles() = default;
    ~AmxTiles() {
        if (rows_) _tile_release();
    }
    AmxTiles(const AmxTiles&) = delete;
    AmxTiles& operator=(const AmxTiles&) = delete;

    // Configure for up to 32 rows and 32 columns. Registers 0 .. 3: sums of rows 0 .. 15 and 16 .. 31 by columns 0 ..
    // 15 and 16 .. 31; 4, 5: `units` units of the rows; 6, 7: of the columns.
    void shape_square(int rows, int units = LINE) {
        if (rows == rows_ && units == units_) return;
        rows_ = rows, units_ = units;
        const int upper = rows < 16 ? rows : 16, lower = rows - upper;
        shape({upper, upper, lower, lower, upper, lower, units, units}, units);
    }

    // Configure for up to 16 rows and 64 columns. Registers 0 .. 3: sums of 16 columns each; 4: the rows; 5 .. 7:
    // columns.
    void shape_wide(int rows) {
        if (rows == rows_) return;
        rows_ = rows;
        shape({rows, rows, rows, rows, rows, LINE, LINE, LINE}, LINE);
    }

  private:
    // Memory layout of LDTILECFG's operand.
    struct Shapes {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };

    // Set the rows of each register; 0 leaves a register unused. Registers 4 and 5 have rows of `units` units.
    static void shape(std::initializer_list<int> rows, int units) {
        alignas(64) Shapes shapes;
        int index = 0;
        for (const int count : rows) {
            shapes.row_bytes[index] = static_cast<uint16_t>((index == 4 || index == 5 ? units : LINE) * 4);
            shapes.rows[index++] = static_cast<uint8_t>(count ? count : 1);
        }
        compiler_barrier();
        _tile_loadconfig(&shapes);
    }

    int rows_ = 0, units_ = 0;  // of the current configuration; an object uses one of the two shapes
};

// Stores the rows' register from time to time and reads nothing of it: where tile instructions run for some 2,000
// cycles without a store, the next one takes some 800 cycles more (decision 121).
class RegularStores {
  public:
    void after_line() {
        if (++lines_ % LINES_PER_STORE == 0) _tile_stored(4, unread_, 0);
    }

  private:
    static constexpr int LINES_PER_STORE = 4;

    alignas(64) uint32_t unread_[LINE];  // of all rows of the register
    int lines_ = 0;
};

// Register SUM += A times B. A macro, because the intrinsics take only literal numbers of registers.
#define SMOE_ADD_PRODUCT(FORMAT, SUM, A, B) \
    do {                                    \
        if constexpr ((FORMAT) == BFLOAT16) \
            _tile_dpbf16ps(SUM, A, B);      \
        else                                \
            _tile_dpbsud(SUM, A, B);        \
    } while (false)

// Multiply a square: sums += rows times columns, for the first 16 rows or for all.
template <int FORMAT, bool BOTH>
inline void add_products() {
    SMOE_ADD_PRODUCT(FORMAT, 0, 4, 6);
    SMOE_ADD_PRODUCT(FORMAT, 1, 4, 7);
    if constexpr (BOTH) {
        SMOE_ADD_PRODUCT(FORMAT, 2, 5, 6);
        SMOE_ADD_PRODUCT(FORMAT, 3, 5, 7);
    }
}

// Set, load or store all four sums of a square; rows lie `stride` words apart.
inline void zero_square() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

inline void load_square(const uint32_t* sums, int64_t stride) {
    _tile_loadd(0, sums, stride * 4);
    _tile_loadd(1, sums + 16, stride * 4);
    _tile_loadd(2, sums + 16 * stride, stride * 4);
    _tile_loadd(3, sums + 16 * stride + 16, stride * 4);
}

inline void store_square(uint32_t* sums, int64_t stride) {
    _tile_stored(0, sums, stride * 4);
    _tile_stored(1, sums + 16, stride * 4);
    _tile_stored(2, sums + 16 * stride, stride * 4);
    _tile_stored(3, sums + 16 * stride + 16, stride * 4);
}

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
