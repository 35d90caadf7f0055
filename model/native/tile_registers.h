// AMX's tile registers, as products of up to 32 rows in lines with a panel use them. Included by kernel files only.
//
// 0 .. 3: sums of rows 0 .. 15 and 16 .. 31, of columns 0 .. 15 and 16 .. 31 each; 4, 5: those rows; 6, 7: those columns.
// An instruction multiplies LINE units of 16 rows and 16 columns. In bfloat16 it adds up the units' first halves and
// their second halves each by itself, k ascending, and then both to the sum (Intel, Software Developer's Manual,
// TDPBF16PS), whatever the number of rows. In int8 it is exact.
#pragma once

#if defined(__AMX_TILE__)

#include "row_layout.h"
#include "vec.h"

namespace smoe {
namespace SMOE_ISA {

// The compiler does not see what memory tile instructions read.
inline void settle_memory() { asm volatile("" ::: "memory"); }

// This thread's, while the object lives.
class TileRegisters {
  public:
    explicit TileRegisters(int rows) {
        for (int index = 0; index < 8; ++index) row_bytes_[index] = LINE * 4;
        const int upper = rows < 16 ? rows : 16, lower = rows - upper;
        rows_[0] = rows_[1] = rows_[4] = upper;
        rows_[2] = rows_[3] = rows_[5] = lower ? lower : 1;
        rows_[6] = rows_[7] = LINE;
        settle_memory();
        _tile_loadconfig(this);
    }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;

  private:
    // As LDTILECFG reads it.
    alignas(64) uint8_t palette_ = 1;
    uint8_t start_row_ = 0, reserved_[14] = {};
    uint16_t row_bytes_[16] = {};
    uint8_t rows_[16] = {};
};

// Sums += rows times columns, of 16 rows or of both halves.
template <int FORMAT, bool BOTH>
inline void add_products() {
    if constexpr (FORMAT == BFLOAT16) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (BOTH) {
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    } else {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if constexpr (BOTH) {
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        }
    }
}

}  // namespace SMOE_ISA
}  // namespace smoe

#endif
