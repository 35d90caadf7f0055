// Sums of products of a few rows, by instructions that multiply two rows by two columns. Included by kernel files only.
#pragma once

#include "gemm/gemm.h"
#include "simd/matrix_products.h"

namespace smoe {
namespace SMOE_ISA {

// True if ROWS rows are multiplied in pairs. With fewer, interleaving the units costs as many instructions as it saves.
template <int ROWS>
constexpr bool IN_PAIRS = SMOE_MATRIX_PRODUCTS && ROWS >= 4;

// Sums of ROWS rows by VECTORS * LANES columns: Words of bytes, or Vec of bfloat16 numbers.
template <class Number, int ROWS, int VECTORS>
class PairedSums;

#if SMOE_MATRIX_PRODUCTS

template <class Number, int ROWS, int VECTORS>
class PairedSums {
  public:
    // Add the products of two units of each row, at x and `distance` words later, with two units of each column.
    [[gnu::always_inline]] inline void add(const uint32_t* x, int64_t distance, const Words (&first)[VECTORS],
                                           const Words (&second)[VECTORS]) {
        Words columns[VECTORS][2];
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part) {
            columns[part][0] = interleave_low(first[part], second[part]);
            columns[part][1] = interleave_high(first[part], second[part]);
        }
#pragma GCC unroll 3
        for (int m = 0; m < ROWS; m += 4) {
            const Words x0 = load_first_words(x + m, ROWS - m), x1 = load_first_words(x + distance + m, ROWS - m);
            add_pair(sums_[m / 2], columns, interleave_low(x0, x1));
            if (m + 2 < ROWS) add_pair(sums_[m / 2 + 1], columns, interleave_high(x0, x1));
        }
    }

    // Sums of row m with the columns of vector `part`.
    [[gnu::always_inline]] inline Number row(int m, int part) const {
        const auto& sums = sums_[m / 2][part];
        return m % 2 ? odd_lanes(sums[0], sums[1]) : even_lanes(sums[0], sums[1]);
    }

  private:
    using Pair = Number[VECTORS][2];

    [[gnu::always_inline]] static inline void add_pair(Pair& sums, const Words (&columns)[VECTORS][2], Words rows) {
#pragma GCC unroll 4
        for (int part = 0; part < VECTORS; ++part)
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half)
                sums[part][half] = add_matrix_product(sums[part][half], columns[part][half], rows);
    }

    Pair sums_[(ROWS + 1) / 2] = {};
};

#endif

}  // namespace SMOE_ISA
}  // namespace smoe
