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
constexpr int64_t MAX_PASSING = 3;        // and one more may be read ahead
constexpr int64_t SLOTS_PER_PASSING = 16;
constexpr float DECAY = 15.0f / 16;  // of a score, per step of its layer
constexpr float HYSTERESIS = 0.5f;   // half a use more than the kept expert has
constexpr int64_t AT_END = 1;        // the source ends before the piece does

int64_t whole_pages(int64_t bytes) { return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES; }

}  // namespace

ExpertStore::ExpertStore(const smoe_store_layout& layout)
    : num_experts_(layout.experts), slot_bytes_(layout.slot_bytes),
      positions_(layout.positions, layout.positions + layout.layers * layout.experts),
      expert_bytes_(layout.expert_bytes, layout.expert_bytes + layout.layers),
      memory_(static_cast<std::byte*>(layout.memory)),
      mapped_(static_cast<std::byte*>(const_cast<void*>(layout.mapped))), read_(layout.read), drop_(layout.drop),
      context_(layout.context), slots_(layout.slots), slot_of_(positions_.size(), NONE), scores_(positions_.size()) {
    share_out_slots();
    ready_.reserve(num_experts_);  // readers must not allocate
    dropped_.reserve(positions_.size());
    dropping_.reserve(layout.readers);
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

std::byte* ExpertStore::address(const Slot& slot) const {
    return memory_ ? memory_ + (&slot - slots_.data()) * slot_bytes_ : mapped_ + positions_[slot.expert];
}

// Give equally many slots to each layer and leave some to pass through. Example: of 8 slots for 4 layers two are left,
// and layers 0 .. 3 keep 1, 2, 1 and 2 experts.
void ExpertStore::share_out_slots() {
    const auto num_slots = static_cast<int64_t>(slots_.size()), num_layers = static_cast<int64_t>(expert_bytes_.size());
    const int64_t passing = std::clamp(num_slots / SLOTS_PER_PASSING, MIN_PASSING, MAX_PASSING);
    const int64_t num_kept = std::max<int64_t>(0, num_slots - passing);
    const int64_t most = std::min(num_kept, num_layers * num_experts_);
    for (int64_t layer = 0, slot = 0; layer < num_layers; ++layer)
        for (; slot < (layer + 1) * most / num_layers; ++slot) slots_[slot].kept_for = layer;
}

void ExpertStore::expect(int64_t layer, int32_t expert) { forecast_.push_back(layer * num_experts_ + expert); }

void ExpertStore::begin(int64_t layer, const std::vector<int32_t>& needed) {
    std::lock_guard<std::mutex> lock(mutex_);
    layer_ = layer;
    count_use(needed);
    for (const int32_t expert : needed)
        if (!take(expert)) missing_.push_back(expert);
    hurry_pieces();
    renew_expected();
    ask_for_missing();
}

void ExpertStore::count_use(const std::vector<int32_t>& needed) {
    for (int64_t expert = 0; expert < num_experts_; ++expert) scores_[layer_ * num_experts_ + expert] *= DECAY;
    for (const int32_t expert : needed) scores_[number_of(expert)] += 1;
}

// Use a needed expert if it lies in memory or is being read; return whether it is.
bool ExpertStore::take(int32_t expert) {
    const int64_t index = slot_of_[number_of(expert)];
    const bool is_kept = index != NONE && !slots_[index].pieces_to_read && !slots_[index].bytes_ahead;
    ++(is_kept ? counts_.hits : counts_.misses);
    if (index == NONE) return false;
    Slot& slot = slots_[index];
    counts_.foreseen += !is_kept;
    counts_.read_bytes += slot.bytes_ahead;
    slot.bytes_ahead = 0;
    slot.is_expected = false;
    slot.is_in_use = true;
    if (slot.pieces_to_read)
        ++num_arriving_;
    else
        ready_.push_back(expert);
    return true;
}

// Read the rest of experts that were expected and are needed now before all else.
void ExpertStore::hurry_pieces() {
    const auto is_later = [this](const Piece& piece) { return !slots_[piece.slot].is_in_use; };
    const auto needed = std::stable_partition(later_.begin(), later_.end(), is_later);
    queue_.insert(queue_.end(), needed, later_.end());
    later_.erase(needed, later_.end());
}

// Give up what was expected of this layer and is not needed, or is no longer expected of a later one.
void ExpertStore::renew_expected() {
    for (size_t slot = 0; slot < slots_.size(); ++slot)
        if (slots_[slot].is_expected && std::count(forecast_.begin(), forecast_.end(), slots_[slot].expert) == 0)
            give_up(static_cast<int64_t>(slot));
    expected_.assign(forecast_.begin(), forecast_.end());
    forecast_.clear();
}

// Give slots to missing experts, as far as there are any, and let the threads read them.
void ExpertStore::ask_for_missing() {
    while (!missing_.empty()) {
        const int64_t slot = choose_slot(layer_);
        if (slot == NONE) {
            if (give_up_expected()) continue;
            return;
        }
        start_reading(number_of(missing_.front()), slot, queue_);
        slots_[slot].is_in_use = true;
        ++num_arriving_;
        missing_.pop_front();
    }
    ask_for_expected();
}

// Give slots to expected experts, as far as there are any: none that has an expected expert already.
void ExpertStore::ask_for_expected() {
    for (const int64_t number : expected_)
        if (slot_of_[number] != NONE) slots_[slot_of_[number]].is_expected = true;
    while (!expected_.empty()) {
        const int64_t number = expected_.front();
        int64_t slot = slot_of_[number];
        if (slot == NONE) {
            slot = choose_slot(number / num_experts_);
            if (slot == NONE) return;
            start_reading(number, slot, later_);
        }
        slots_[slot].is_expected = true;
        expected_.pop_front();
    }
}

// Return an empty slot of the layer, or the slot to pass through whose expert has the lowest score; NONE if all are in
// use. A slot that keeps another expert is never chosen: reading that one again would take longer than waiting.
int64_t ExpertStore::choose_slot(int64_t layer) const {
    int64_t best = NONE;
    for (int64_t slot = 0; slot < static_cast<int64_t>(slots_.size()); ++slot) {
        const Slot& one = slots_[slot];
        const bool is_empty = one.expert == NONE;
        if (one.is_in_use || one.is_expected || one.is_given_up) continue;
        if (one.kept_for != NONE && !(is_empty && one.kept_for == layer)) continue;
        if (is_empty) return slot;
        if (best == NONE || scores_[one.expert] < scores_[slots_[best].expert]) best = slot;
    }
    return best;
}

// Give up the expert that is expected last, for one that the layer needs now. Return false if there is none, or if a
// slot becomes free anyway.
bool ExpertStore::give_up_expected() {
    int64_t last = NONE;
    for (int64_t slot = 0; slot < static_cast<int64_t>(slots_.size()); ++slot) {
        const Slot& one = slots_[slot];
        if (one.kept_for != NONE) continue;
        if (one.is_given_up) return false;
        if (one.is_expected && (last == NONE || one.expert > slots_[last].expert)) last = slot;
    }
    if (last != NONE) give_up(last);
    return last != NONE;
}

// Expect a slot's expert no longer. If it is complete, it stays until the slot takes another one.
void ExpertStore::give_up(int64_t slot) {
    Slot& given_up = slots_[slot];
    given_up.is_expected = false;
    counts_.unneeded_bytes += given_up.bytes_ahead;
    given_up.bytes_ahead = 0;
    if (!given_up.pieces_to_read) return;
    forget_pieces(slot);
    slot_of_[given_up.expert] = NONE;
    given_up.is_given_up = true;
    if (!given_up.pieces_reading) empty(slot);
}

void ExpertStore::start_reading(int64_t number, int64_t slot, std::deque<Piece>& queue) {
    empty(slot);
    const int64_t bytes = whole_pages(expert_bytes_[number / num_experts_]);
    Slot& taken = slots_[slot];
    taken.expert = number;
    taken.pieces_to_read = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    slot_of_[number] = slot;
    dropped_.erase(std::remove(dropped_.begin(), dropped_.end(), number), dropped_.end());
    try {
        for (int64_t offset = 0; offset < bytes; offset += PIECE_BYTES)
            queue.push_back({slot, offset, std::min(PIECE_BYTES, bytes - offset)});
    } catch (...) {
        empty(slot);
        throw;
    }
    wake_readers_.notify_all();
}

void ExpertStore::forget_pieces(int64_t slot) {
    const auto is_its = [slot](const Piece& piece) { return piece.slot == slot; };
    for (auto* queue : {&queue_, &later_})
        queue->erase(std::remove_if(queue->begin(), queue->end(), is_its), queue->end());
}

void ExpertStore::empty(int64_t slot) {
    Slot& emptied = slots_[slot];
    if (emptied.expert != NONE) {
        forget_pieces(slot);
        if (slot_of_[emptied.expert] == slot) slot_of_[emptied.expert] = NONE;
        const bool is_dropped = !memory_ && slot_of_[emptied.expert] == NONE;
        if (is_dropped && dropped_.size() < dropped_.capacity()) dropped_.push_back(emptied.expert);
        if (is_dropped) wake_readers_.notify_one();
    }
    emptied.expert = NONE;
    emptied.pieces_to_read = 0;
    emptied.is_given_up = false;
}

std::vector<int32_t> ExpertStore::next(Pool& pool) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (ready_.empty() && (num_arriving_ || !missing_.empty())) {
        if (failed_) throw *failed_;
        const auto start = std::chrono::steady_clock::now();
        wake_caller_.wait(lock, [&] { return !ready_.empty() || failed_ || num_pieces_ != seen_pieces_; });
        seen_pieces_ = num_pieces_;
        const auto waited = std::chrono::steady_clock::now() - start;
        counts_.waited_ns += std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count();
        pool.beat();  // a slow disk makes progress too
        if (!failed_) ask_for_missing();
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
    return address(slots_[slot_of_[number]]) - (mapped_ + positions_[number]);
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
        if (kept.kept_for != layer_ || kept.is_in_use || kept.is_given_up || kept.expert == NONE) continue;
        if (lowest == NONE || scores_[kept.expert] < scores_[slots_[lowest].expert]) lowest = other;
    }
    if (lowest == NONE || scores_[slots_[slot].expert] <= scores_[slots_[lowest].expert] + HYSTERESIS) return;
    std::swap(slots_[slot].kept_for, slots_[lowest].kept_for);
}

void ExpertStore::end() noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    queue_.clear();
    wake_caller_.wait(lock, [this] { return !is_read_for_layer(); });
    for (int64_t slot = 0; slot < static_cast<int64_t>(slots_.size()); ++slot) {
        if (!slots_[slot].is_in_use) continue;
        if (slots_[slot].pieces_to_read) empty(slot);
        slots_[slot].is_in_use = false;
    }
    ready_.clear();
    missing_.clear();
    num_arriving_ = 0;
    failed_.reset();
}

bool ExpertStore::is_read_for_layer() const {
    return std::any_of(slots_.begin(), slots_.end(),
                       [](const Slot& slot) { return slot.is_in_use && slot.pieces_reading; });
}

smoe_store_counts ExpertStore::counts() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return counts_;
}

ReadFault ExpertStore::fault() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return fault_;
}

// Read pieces and drop pages until the store ends.
void ExpertStore::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
        if (!dropped_.empty())
            drop_pages(lock);
        else if (const std::optional<Piece> piece = take_piece())
            read_piece(*piece, lock);
        else
            wake_readers_.wait(lock);
    }
}

// Drop the pages of an expert whose slot took another one: before that is read, so that it finds memory. If the expert
// itself is to be read again, that begins when its pages are dropped.
void ExpertStore::drop_pages(std::unique_lock<std::mutex>& lock) {
    const int64_t number = dropped_.back();
    dropped_.pop_back();
    dropping_.push_back(number);
    lock.unlock();
    drop_(context_, mapped_ + positions_[number], whole_pages(expert_bytes_[number / num_experts_]),
          positions_[number]);
    lock.lock();
    dropping_.erase(std::find(dropping_.begin(), dropping_.end(), number));
    wake_readers_.notify_all();
}

// Remove and return the first piece of an expert whose pages are not being dropped.
std::optional<ExpertStore::Piece> ExpertStore::take_piece() {
    const auto may_be_read = [this](const Piece& piece) {
        return std::count(dropping_.begin(), dropping_.end(), slots_[piece.slot].expert) == 0;
    };
    for (auto* queue : {&queue_, &later_}) {
        const auto found = std::find_if(queue->begin(), queue->end(), may_be_read);
        if (found == queue->end()) continue;
        const Piece piece = *found;
        queue->erase(found);
        return piece;
    }
    return {};
}

void ExpertStore::read_piece(const Piece& piece, std::unique_lock<std::mutex>& lock) {
    Slot& slot = slots_[piece.slot];
    const int64_t position = positions_[slot.expert] + piece.offset;
    std::byte* to = address(slot) + piece.offset;
    ++slot.pieces_reading;
    lock.unlock();
    const int64_t error = read_twice(to, piece.bytes, position);
    lock.lock();
    --slot.pieces_reading;
    finish(piece, position, error);
    wake_caller_.notify_one();
}

int64_t ExpertStore::read_twice(std::byte* to, int64_t bytes, int64_t position) const {
    const int64_t error = read(to, bytes, position);
    return error ? read(to, bytes, position) : 0;
}

// Return 0, AT_END or a negative error number. What is no whole page is read again: a direct read could not go on
// there.
int64_t ExpertStore::read(std::byte* to, int64_t bytes, int64_t position) const {
    for (int64_t done = 0; done < bytes;) {
        const int64_t count = read_(context_, to + done, bytes - done, position + done);
        if (count == -EINTR) continue;
        if (count < 0) return count;
        if (count < PAGE_BYTES) return AT_END;
        done += count / PAGE_BYTES * PAGE_BYTES;
    }
    return 0;
}

void ExpertStore::finish(const Piece& piece, int64_t position, int64_t error) {
    Slot& slot = slots_[piece.slot];
    ++num_pieces_;
    if (slot.is_given_up) {
        counts_.unneeded_bytes += piece.bytes;
        if (!slot.pieces_reading) empty(piece.slot);
        return;
    }
    if (error) {
        if (!slot.is_in_use) return give_up(piece.slot);  // whoever needs it will see that
        fault_ = {slot.expert / num_experts_, slot.expert % num_experts_, position, error < 0 ? -error : 0};
        failed_ = fault_;
        return;
    }
    (slot.is_in_use ? counts_.read_bytes : slot.bytes_ahead) += piece.bytes;
    if (--slot.pieces_to_read || !slot.is_in_use) return;
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
