#include "group/shared_group.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "runtime/spin.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#endif

namespace smoe {
namespace {

#if defined(__linux__)

constexpr timespec SLEEP{0, 100'000'000};  // of a waiting rank between looks at `ended`

// The kernel compares the word with `expected` before it lets the caller sleep, so no wake-up is lost.
void sleep_while_equal(std::atomic<uint32_t>& word, uint32_t expected) {
    syscall(SYS_futex, &word, FUTEX_WAIT, expected, &SLEEP, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

#else

void sleep_while_equal(std::atomic<uint32_t>&, uint32_t) { std::this_thread::sleep_for(SPIN_TIME); }

void wake_all(std::atomic<uint32_t>&) {}

#endif

}  // namespace

size_t SharedGroup::memory_bytes(int size, int64_t buffer_bytes) {
    return (size + 1) * sizeof(Line) + 2 * buffer_bytes;
}

SharedGroup::SharedGroup(void* memory, int rank, int size, int64_t buffer_bytes)
    : lines_(static_cast<Line*>(memory)), buffers_(reinterpret_cast<std::byte*>(lines_ + size + 1)), rank_(rank),
      size_(size), buffer_bytes_(buffer_bytes), arrivals_(num_arrivals(rank)) {}

bool SharedGroup::has_ended() const { return lines_[size_].arrivals.load() != 0; }

uint32_t SharedGroup::num_arrivals(int rank) const { return lines_[rank].arrivals.load(); }

void SharedGroup::end() {
    lines_[size_].arrivals.store(1);
    for (int rank = 0; rank < size_; ++rank) wake_all(lines_[rank].arrivals);
}

void SharedGroup::gather(const void* part, void* whole, int64_t rows, const Columns& columns) {
    const auto* from = static_cast<const std::byte*>(part);
    auto* to = static_cast<std::byte*>(whole);
    const int64_t step = buffer_bytes_ / columns.whole_bytes;
    for (int64_t first = 0; first < rows; first += step) {
        const int64_t count = std::min(step, rows - first);
        std::byte* buffer = buffers_ + arrivals_ % 2 * buffer_bytes_;
        for (int64_t row = 0; row < count; ++row)
            std::memcpy(buffer + row * columns.whole_bytes + columns.first_byte,
                        from + (first + row) * columns.part_bytes, columns.part_bytes);
        meet();
        std::memcpy(to + first * columns.whole_bytes, buffer, count * columns.whole_bytes);
    }
}

// Wait until every rank has filled its part of the buffer.
void SharedGroup::meet() {
    Line& own = lines_[rank_];
    own.arrivals.store(++arrivals_);
    if (own.sleepers.load()) wake_all(own.arrivals);
    for (int rank = 0; rank < size_; ++rank)
        if (rank != rank_) await_rank(lines_[rank], arrivals_);
    if (has_ended()) throw GroupEnded{};
}

void SharedGroup::await_rank(Line& line, uint32_t arrival) {
    const auto has_arrived = [&] { return static_cast<int32_t>(line.arrivals.load() - arrival) >= 0; };
    if (spin(has_arrived)) return;
    ++line.sleepers;
    for (uint32_t seen = line.arrivals.load(); !has_arrived() && !has_ended(); seen = line.arrivals.load())
        sleep_while_equal(line.arrivals, seen);
    --line.sleepers;
}

}  // namespace smoe
