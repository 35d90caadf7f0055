// The 16 values of IQ4_NL and IQ4_XS, -127 .. 113, as bytes q + 128 (llama.cpp, ggml-common.h).
#pragma once

#include <cstdint>

namespace smoe {

constexpr uint8_t IQ4_VALUES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

}  // namespace smoe
