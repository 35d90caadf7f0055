// Measured limits of the machine: bytes read from memory, and multiply-adds in registers. For `smoe bench`.
#pragma once

#include <cstdint>

#include "runtime/isa.h"

namespace smoe {

class Pool;

enum Arithmetic { MULTIPLY_FLOAT32 = 0, MULTIPLY_BFLOAT16 = 1, MULTIPLY_INT8 = 2 };

// read_all: read the buffer once on all threads; returns the sum of its words, so that no read can be optimized away.
// peak_operations: chains of independent multiply-adds without memory access, `rounds` on each thread; returns the
// number of operations (two per multiply-add), or 0 if the instruction set has no such operation.
SMOE_PER_ISA(uint32_t read_all(Pool& pool, const void* buffer, int64_t num_bytes);
             int64_t peak_operations(Pool& pool, int arithmetic, int64_t rounds))

}  // namespace smoe
