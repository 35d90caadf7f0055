// Experts of a network that is larger than memory: some lie in slots of memory, the others are read from a file when
// rows need them.
//
// A layer of a step begins with the experts that its rows need. Those that lie in a slot are ready at once; the others
// are read by several threads, in pieces, while the caller computes the ready ones. If they are more than there are
// slots for, a slot takes the next one as soon as its expert is computed. When all of them have a slot, experts that
// later layers will probably need are read ahead, as far as slots are left, so that the disk does not wait for the
// arithmetic.
//
// Every layer keeps equally many experts, so that in every layer reads and computation overlap. Which ones, is decided
// by their scores: the number of the layer's steps that needed them, less for those long ago. An expert that is read
// passes through one of a few other slots; it changes places with a kept one only if its score is clearly higher. An
// order of last use would be of no help: a step goes through all layers, so what was used longest ago is needed next.
// If every step needs all experts, no order of reads finds more of them than a fixed set of kept ones.
//
// Slots lie in memory of the store, or in the page cache: then an expert is read where the file is mapped, and its
// pages are dropped when its slot takes another one.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "runtime/thread_pool.h"
#include "smoe_native.h"

namespace smoe {

// Thrown where an expert cannot be read; `error` is a number of errno, or 0 if the source ends before the expert does.
struct ReadFault {
    int64_t layer, expert, position, error;
};

class ExpertStore {
  public:
    // Starts the reader threads; copies the layout's tables. Throws std::bad_alloc and std::system_error.
    explicit ExpertStore(const smoe_store_layout& layout);
    ~ExpertStore();
    ExpertStore(const ExpertStore&) = delete;
    ExpertStore& operator=(const ExpertStore&) = delete;

    // Name an expert that a later layer will probably need, those of the nearest layer first, before a layer begins.
    void expect(int64_t layer, int32_t expert);
    // Begin a layer of a step, which needs these experts (ascending ids).
    void begin(int64_t layer, const std::vector<int32_t>& needed);
    // Return needed experts that lie in memory and were not returned before (ascending); wait until there is one. Empty
    // when all were returned. Throws ReadFault.
    std::vector<int32_t> next(Pool& pool);
    // Bytes from an expert's address in the mapped source to its slot. It lies there from next() until done().
    intptr_t shift(int32_t expert) const;
    // Release experts that next() returned.
    void done(const std::vector<int32_t>& experts);
    // End the layer. After an exception too: then reads for it that have begun are waited for, the others are dropped.
    void end() noexcept;

    smoe_store_counts counts() const;
    // The last fault that next() has thrown, or zeros.
    ReadFault fault() const;

  private:
    struct Slot {
        int64_t expert = NONE;       // number of the expert: layer * experts + id
        int64_t kept_for = NONE;     // layer that keeps an expert here; NONE: experts pass through
        int64_t pieces_to_read = 0;  // 0: complete
        int64_t pieces_reading = 0;  // of them: that threads read now
        int64_t bytes_ahead = 0;     // that were read before a layer needed them
        bool is_in_use = false;      // by the current layer
        bool is_expected = false;    // by a later layer
        bool is_given_up = false;    // while it was read: free when no thread reads any more
    };
    struct Piece {
        int64_t slot, offset, bytes;
    };
    static constexpr int64_t NONE = -1;

    int64_t number_of(int32_t expert) const { return layer_ * num_experts_ + expert; }
    std::byte* address(const Slot& slot) const;
    void share_out_slots();
    void count_use(const std::vector<int32_t>& needed);
    bool take(int32_t expert);
    void hurry_pieces();
    void renew_expected();
    void ask_for_missing();
    void ask_for_expected();
    int64_t choose_slot(int64_t layer) const;
    bool give_up_expected();
    void give_up(int64_t slot);
    void start_reading(int64_t number, int64_t slot, std::deque<Piece>& queue);
    void forget_pieces(int64_t slot);
    void empty(int64_t slot);
    void consider_keeping(int64_t slot);
    void work();
    void drop_pages(std::unique_lock<std::mutex>& lock);
    std::optional<Piece> take_piece();
    void read_piece(const Piece& piece, std::unique_lock<std::mutex>& lock);
    int64_t read_twice(std::byte* to, int64_t bytes, int64_t position) const;
    int64_t read(std::byte* to, int64_t bytes, int64_t position) const;
    void finish(const Piece& piece, int64_t position, int64_t error);
    bool is_read_for_layer() const;
    void stop();

    const int64_t num_experts_, slot_bytes_;
    const std::vector<int64_t> positions_, expert_bytes_;  // [layers * experts], [layers]
    std::byte* const memory_;                              // null: slots are where the source is mapped
    std::byte* const mapped_;
    smoe_read* const read_;
    smoe_drop* const drop_;
    void* const context_;

    std::vector<int64_t> forecast_;  // numbers of the experts named since a layer began; of the caller only

    mutable std::mutex mutex_;  // guards all below
    std::condition_variable wake_readers_, wake_caller_;
    std::vector<Slot> slots_;
    std::vector<int64_t> slot_of_;   // [layers * experts] or NONE
    std::vector<float> scores_;      // [layers * experts]
    int64_t layer_ = 0;              // current
    std::vector<int32_t> ready_;     // needed, in memory, not yet returned
    std::deque<int32_t> missing_;    // needed, without a slot
    int64_t num_arriving_ = 0;       // needed, being read
    std::deque<int64_t> expected_;   // numbers of the experts to read ahead, without a slot
    std::deque<Piece> queue_;        // to read, in order
    std::deque<Piece> later_;        // the same, of expected experts: read when nothing else is to be
    std::vector<int64_t> dropped_;   // numbers of the experts whose pages are to be dropped
    std::vector<int64_t> dropping_;  // whose pages are being dropped; each reader drops those of one
    uint64_t num_pieces_ = 0;        // that were read or given up
    uint64_t seen_pieces_ = 0;       // the same, when the caller last looked
    bool stopping_ = false;
    std::optional<ReadFault> failed_;  // in the current layer
    ReadFault fault_{};
    smoe_store_counts counts_{};
    std::vector<std::thread> readers_;
};

// A layer of a step, from its beginning to its end.
class StoredLayer {
  public:
    StoredLayer(ExpertStore& store, int64_t layer, const std::vector<int32_t>& needed);
    ~StoredLayer() { store_.end(); }
    StoredLayer(const StoredLayer&) = delete;
    StoredLayer& operator=(const StoredLayer&) = delete;

  private:
    ExpertStore& store_;
};

}  // namespace smoe
