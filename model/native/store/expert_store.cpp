#include "store/expert_store.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "runtime/signals_blocked.h"

namespace smoe {
namespace {

constexpr int64_t PIECE_BYTES = 2 << 20;  // of one read: a disk needs several of a megabyte at once to reach its speed
constexpr int64_t PAGE_BYTES = 4096;      // addresses, positions and sizes of direct reads are multiples
constexpr int64_t MIN_PASSING = 2;        // slots: one is computed while the next one is read
constexpr int64_t SLOTS_PER_PASSING = 16;
constexpr float DECAY = 127.0f / 128;  // of a score, per step of its layer
constexpr float HYSTERESIS = 1.0f;     // one more use than the kept expert has
constexpr int64_t AT_END = 1;          // the source ends before the piece does

int64_t whole_pages(int64_t bytes) { return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES; }

}  // namespace

ExpertStore::ExpertStore(const smoe_store_layout& layout)
    : num_experts_(layout.experts), slot_bytes_(layout.slot_bytes),
      positions_(layout.positions, layout.positions + layout.layers * layout.experts),
      expert_bytes_(layout.expert_bytes, layout.expert_bytes + layout.layers),
      memory_(static_cast<std::byte*>(layout.memory)), mapped_(static_cast<const std::byte*>(layout.mapped)),
      read_(layout.read), context_(layout.context), slots_(layout.slots), slot_of_(positions_.size(), NONE),
      scores_(positions_.size()) {
    share_out_slots();
    ready_.reserve(num_experts_);  // readers must not allocate
    const SignalsBlocked blocked;
    try {
        for (int64_t i = 0; i < layout.readers; ++i) readers_.emplace_back([this] { work(); });
    } catch (...) {
        stop();
        throw;
    }
}

ExpertStore::~ExpertStore() { stop(); }

void ExpertStore::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_readers_.notify_all();
    for (auto& reader : readers_) reader.join();
    readers_.clear();
}

// Give equally many slots to each layer and leave some to pass through. Example: of 8 slots for 4 layers two are left,
// and layers 0 .. 3 keep 1, 2, 1 and 2 experts.
void ExpertStore::share_out_slots() {
    const auto num_slots = static_cast<int64_t>(slots_.size()), num_layers = static_cast<int64_t>(expert_bytes_.size());
    const int64_t passing = std::clamp(num_slots / SLOTS_PER_PASSING, MIN_PASSING, std::max(MIN_PASSING, num_experts_));
    const int64_t num_kept = std::max<int64_t>(0, num_slots - passing);
    const int64_t most = std::min(num_kept, num_layers * num_experts_);
    for (int64_t layer = 0, slot = 0; layer < num_layers; ++layer)
        for (; slot < (layer + 1) * most / num_layers; ++slot) slots_[slot].kept_for = layer;
}

void ExpertStore::begin(int64_t layer, const std::vector<int32_t>& needed) {
    std::lock_guard<std::mutex> lock(mutex_);
    layer_ = layer;
    count_use(needed);
    for (const int32_t expert : needed) {
        const int64_t slot = slot_of_[number_of(expert)];
        if (slot == NONE) {
            missing_.push_back(expert);
            ++counts_.misses;
        } else {
            slots_[slot].is_in_use = true;
            ready_.push_back(expert);
            ++counts_.hits;
        }
    }
    ask_for_missing();
}

void ExpertStore::count_use(const std::vector<int32_t>& needed) {
    for (int64_t expert = 0; expert < num_experts_; ++expert) scores_[layer_ * num_experts_ + expert] *= DECAY;
    for (const int32_t expert : needed) scores_[number_of(expert)] += 1;
}

// Give slots to missing experts, as far as there are any, and let the threads read them.
void ExpertStore::ask_for_missing() {
    while (!missing_.empty()) {
        const int64_t slot = choose_slot();
        if (slot == NONE) return;
        start_reading(missing_.front(), slot);
        missing_.pop_front();
    }
}

// Return an empty slot of the layer, or the slot to pass through whose expert has the lowest score; NONE if all are in
// use. A slot that keeps another expert is never chosen: reading that one again would take longer than waiting.
int64_t ExpertStore::choose_slot() const {
    int64_t best = NONE;
    for (int64_t slot = 0; slot < static_cast<int64_t>(slots_.size()); ++slot) {
        const Slot& one = slots_[slot];
        const bool is_empty = one.expert == NONE;
        if (one.is_in_use || (one.kept_for != NONE && !(is_empty && one.kept_for == layer_))) continue;
        if (is_empty) return slot;
        if (best == NONE || scores_[one.expert] < scores_[slots_[best].expert]) best = slot;
    }
    return best;
}

void ExpertStore::start_reading(int32_t expert, int64_t slot) {
    empty(slot);
    const int64_t bytes = whole_pages(expert_bytes_[layer_]);
    for (int64_t offset = 0; offset < bytes; offset += PIECE_BYTES)
        queue_.push_back({slot, offset, std::min(PIECE_BYTES, bytes - offset)});
    Slot& taken = slots_[slot];
    taken.expert = number_of(expert);
    taken.is_in_use = true;
    taken.pieces_to_read = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    slot_of_[taken.expert] = slot;
    ++num_arriving_;
    wake_readers_.notify_all();
}

void ExpertStore::empty(int64_t slot) {
    Slot& emptied = slots_[slot];
    if (emptied.expert != NONE) slot_of_[emptied.expert] = NONE;
    emptied.expert = NONE;
    emptied.pieces_to_read = 0;
}

std::vector<int32_t> ExpertStore::next(Pool& pool) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (ready_.empty() && num_arriving_) {
        if (failed_) throw *failed_;
        const auto start = std::chrono::steady_clock::now();
        wake_caller_.wait(lock, [&] { return !ready_.empty() || failed_ || num_pieces_ != seen_pieces_; });
        seen_pieces_ = num_pieces_;
        const auto waited = std::chrono::steady_clock::now() - start;
        counts_.waited_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count();
        pool.beat();  // a slow disk makes progress too
    }
    if (failed_) throw *failed_;
    std::vector<int32_t> experts(ready_);
    ready_.clear();
    std::sort(experts.begin(), experts.end());
    return experts;
}

intptr_t ExpertStore::shift(int32_t expert) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t number = number_of(expert);
    return address(slot_of_[number]) - (mapped_ + positions_[number]);
}

void ExpertStore::done(const std::vector<int32_t>& experts) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const int32_t expert : experts) {
        const int64_t slot = slot_of_[number_of(expert)];
        slots_[slot].is_in_use = false;
        if (slots_[slot].kept_for == NONE) consider_keeping(slot);
    }
    ask_for_missing();
}

// Let the slot's expert change places with the kept one of the layer that has the lowest score, if that is clearly
// lower: the two slots change their purpose, and nothing is copied.
void ExpertStore::consider_keeping(int64_t slot) {
    int64_t lowest = NONE;
    for (int64_t other = 0; other < static_cast<int64_t>(slots_.size()); ++other) {
        const Slot& kept = slots_[other];
        if (kept.kept_for != layer_ || kept.is_in_use || kept.expert == NONE) continue;
        if (lowest == NONE || scores_[kept.expert] < scores_[slots_[lowest].expert]) lowest = other;
    }
    if (lowest == NONE || scores_[slots_[slot].expert] <= scores_[slots_[lowest].expert] + HYSTERESIS) return;
    std::swap(slots_[slot].kept_for, slots_[lowest].kept_for);
}

void ExpertStore::end() noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    queue_.clear();
    wake_caller_.wait(lock, [this] { return num_reading_ == 0; });
    for (int64_t slot = 0; slot < static_cast<int64_t>(slots_.size()); ++slot) {
        if (slots_[slot].pieces_to_read) empty(slot);
        slots_[slot].is_in_use = false;
    }
    ready_.clear();
    missing_.clear();
    num_arriving_ = 0;
    failed_.reset();
}

smoe_store_counts ExpertStore::counts() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return counts_;
}

ReadFault ExpertStore::fault() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return fault_;
}

// Read pieces until the store ends.
void ExpertStore::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
        wake_readers_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        if (stopping_) return;
        const Piece piece = queue_.front();
        queue_.pop_front();
        const int64_t position = positions_[slots_[piece.slot].expert] + piece.offset;
        ++num_reading_;
        lock.unlock();
        const int64_t error = read_twice(piece, position);
        lock.lock();
        --num_reading_;
        finish(piece, position, error);
        wake_caller_.notify_one();
    }
}

int64_t ExpertStore::read_twice(const Piece& piece, int64_t position) const {
    const int64_t error = read(piece, position);
    return error ? read(piece, position) : 0;
}

// Return 0, AT_END or a negative error number. What is no whole page is read again: a direct read could not go on
// there.
int64_t ExpertStore::read(const Piece& piece, int64_t position) const {
    std::byte* to = address(piece.slot) + piece.offset;
    for (int64_t done = 0; done < piece.bytes;) {
        const int64_t count = read_(context_, to + done, piece.bytes - done, position + done);
        if (count == -EINTR) continue;
        if (count < 0) return count;
        if (count < PAGE_BYTES) return AT_END;
        done += count / PAGE_BYTES * PAGE_BYTES;
    }
    return 0;
}

void ExpertStore::finish(const Piece& piece, int64_t position, int64_t error) {
    Slot& slot = slots_[piece.slot];
    if (error) {
        fault_ = {slot.expert / num_experts_, slot.expert % num_experts_, position, error < 0 ? -error : 0};
        failed_ = fault_;
        return;
    }
    ++num_pieces_;
    counts_.read_bytes += piece.bytes;
    if (--slot.pieces_to_read) return;
    --num_arriving_;
    ready_.push_back(static_cast<int32_t>(slot.expert % num_experts_));
}

StoredLayer::StoredLayer(ExpertStore& store, int64_t layer, const std::vector<int32_t>& needed) : store_(store) {
    try {
        store_.begin(layer, needed);
    } catch (...) {
        store_.end();
        throw;
    }
}

}  // namespace smoe
