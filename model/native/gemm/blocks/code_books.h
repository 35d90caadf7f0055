// Entries of GGUF's code books as bytes that kernels multiply (gemm/block_formats.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace smoe {

// The files' numbers of each entry, packed: name_CODES[].
#define CODE_BOOK(name, ...) inline constexpr uint16_t name##_CODES[] = {__VA_ARGS__};
#include "../checkpoint/gguf/code_books.inc"
#undef CODE_BOOK

// Entries of four numbers are words, of eight two words.
template <class Entry, size_t COUNT, class Byte>
constexpr std::array<Entry, COUNT> expanded(const uint16_t (&codes)[COUNT], Byte&& byte_of) {
    constexpr int NUMBERS = sizeof(Entry), BITS = 16 / NUMBERS;
    std::array<Entry, COUNT> book{};
    for (size_t i = 0; i < COUNT; ++i)
        for (int j = 0; j < NUMBERS; ++j) book[i] |= Entry{byte_of(codes[i] >> BITS * j & ((1 << BITS) - 1))} << 8 * j;
    return book;
}

// Magnitudes g = 1, 3 .. 15, as (g + 15) / 2.
alignas(64) inline constexpr auto IQ3_S_BOOK = expanded<uint32_t>(IQ3_S_CODES, [](int code) {
    return static_cast<uint8_t>(8 + code);
});

// Magnitudes 4, 12 .. 52 and 62, as g / 2.
alignas(64) inline constexpr auto IQ3_XXS_BOOK = expanded<uint32_t>(IQ3_XXS_CODES, [](int code) {
    return static_cast<uint8_t>(code == 7 ? 31 : 2 + 4 * code);
});

constexpr uint8_t iq2_byte(int code) { return code == 0 ? 8 : code == 1 ? 25 : 43; }
alignas(64) inline constexpr auto IQ2_S_BOOK = expanded<uint64_t>(IQ2_S_CODES, iq2_byte);
alignas(64) inline constexpr auto IQ2_XS_BOOK = expanded<uint64_t>(IQ2_XS_CODES, iq2_byte);
alignas(64) inline constexpr auto IQ2_XXS_BOOK = expanded<uint64_t>(IQ2_XXS_CODES, iq2_byte);

// Indices of 9, 8, 10, 9 and 8 bits are not checked.
static_assert(IQ3_S_BOOK.size() == 512 && IQ3_XXS_BOOK.size() == 256);
static_assert(IQ2_S_BOOK.size() == 1024 && IQ2_XS_BOOK.size() == 512 && IQ2_XXS_BOOK.size() == 256);

}  // namespace smoe
