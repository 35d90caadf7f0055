// What the machine can do at most: bytes read from memory, and multiply-adds in registers. For `smoe bench`.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

class Pool;

enum Arithmetic { MULTIPLY_FLOAT32 = 0, MULTIPLY_BFLOAT16 = 1, MULTIPLY_INT8 = 2 };

// read_all: reads the buffer once, on all threads; the sum of its words, so that nothing can be left out.
// peak_operations: chains of independent multiply-adds that no memory is needed for, `rounds` on each thread. Returns
// how many operations these were (two per multiply-add), or 0 where the instruction set has none of the kind.
SMOE_PER_ISA(uint32_t read_all(Pool& pool, const void* buffer, int64_t num_bytes);
             int64_t peak_operations(Pool & pool, int arithmetic, int64_t rounds))

}  // namespace smoe
