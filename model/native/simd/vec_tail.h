// Loads and stores of a row's tail, shorter than a vector. Included by kernel files only.
#pragma once

#include "simd/vec.h"

namespace smoe {
namespace SMOE_ISA {

// Load the first n numbers and zeros after them; a whole vector if n >= LANES.
template <class T>
inline Vec load_first(const T* from, int64_t n) {
    if (n >= LANES) return load(from);
    T padded[LANES] = {};
    for (int64_t i = 0; i < n; ++i) padded[i] = from[i];
    return load(padded);
}

// Store n numbers; a whole vector if n >= LANES.
template <class T>
inline void store_first(T* to, Vec x, int64_t n) {
    if (n >= LANES) return store(to, x);
    T padded[LANES];
    store(padded, x);
    for (int64_t i = 0; i < n; ++i) to[i] = padded[i];
}

}  // namespace SMOE_ISA
}  // namespace smoe
