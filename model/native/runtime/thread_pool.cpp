#include "runtime/thread_pool.h"

#include "runtime/signals_blocked.h"
#include "runtime/spin.h"

namespace smoe {
namespace {

constexpr uint64_t CLOSED = 0xffffffffu;
constexpr size_t ALIGNMENT = 64;
// Up to MAX_THREADS_OF_A_SHARE threads claim tasks from one counter; more form groups of about THREADS_OF_A_SHARE.
constexpr int MAX_THREADS_OF_A_SHARE = 32, THREADS_OF_A_SHARE = 16;

size_t num_shares(int threads) {
    return threads <= MAX_THREADS_OF_A_SHARE ? 1 : (threads + THREADS_OF_A_SHARE - 1) / THREADS_OF_A_SHARE;
}

uint64_t job_of(uint64_t ticket) { return ticket >> 32; }
uint64_t index_of(uint64_t ticket) { return ticket & 0xffffffffu; }

// One thread writes, so a plain load and store lose no count and no other core waits for the cache line.
void increment(std::atomic<uint64_t>* heartbeat) {
    if (heartbeat) heartbeat->store(heartbeat->load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

Pool::Pool(int threads) : shares_(num_shares(threads)) {
    for (Share& share : shares_) share.ticket = CLOSED;
    const SignalsBlocked blocked;
    try {
        for (int i = 1; i < threads; ++i) {
            const size_t share = i * shares_.size() / threads;
            workers_.emplace_back([this, share] { work(share); });
        }
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::beat() { increment(heartbeat_); }

void Pool::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_workers_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
}

std::byte* Memory::reserve(size_t bytes) {
    if (bytes > bytes_) {
        memory_.reset();
        bytes_ = 0;
        memory_.reset(new std::byte[bytes + ALIGNMENT]);
        bytes_ = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (ALIGNMENT - address % ALIGNMENT) % ALIGNMENT;
}

void Pool::run(int64_t n, Task task, void* context) {
    if (n <= 1 || workers_.empty()) {
        for (int64_t i = 0; i < n; ++i) {
            task(context, i);
            increment(heartbeat_);
        }
        return;
    }
    open_job(n, task, context);
    if (sleeping_workers_.load() > 0) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }
        wake_workers_.notify_all();
    }
    run_open_tasks(0, heartbeat_);
    await_completion();
}

void Pool::open_job(int64_t n, Task task, void* context) {
    const uint64_t previous = job_of(shares_[0].ticket.load());
    for (Share& share : shares_) share.ticket.store(previous << 32 | CLOSED);
    task_.store(task, std::memory_order_release);
    context_.store(context, std::memory_order_release);
    num_tasks_.store(n, std::memory_order_release);
    const auto count = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < count; ++i) {
        shares_[i].end.store(n * (i + 1) / count, std::memory_order_release);
        shares_[i].done.store(0, std::memory_order_relaxed);
    }
    for (int64_t i = 0; i < count; ++i) shares_[i].ticket.store((previous + 1) << 32 | (n * i / count));
}

// Run tasks until no share has any left, the thread's own share first; return the job that this one had.
uint64_t Pool::run_open_tasks(size_t home, std::atomic<uint64_t>* heartbeat) {
    uint64_t job = 0;
    for (size_t i = 0; i < shares_.size(); ++i) {
        const size_t at = home + i < shares_.size() ? home + i : home + i - shares_.size();
        int64_t finished = 0;
        const uint64_t seen = run_share(shares_[at], finished, heartbeat);
        if (i == 0) job = seen;
        if (finished) add_finished(shares_[home], finished);
    }
    return job;
}

// Run tasks until the share's job has none left; return that job. Adds their number to `finished`: the job cannot end
// before it is reported, so all of them belong to one job.
uint64_t Pool::run_share(Share& share, int64_t& finished, std::atomic<uint64_t>* heartbeat) {
    uint64_t ticket = share.ticket.load();
    while (index_of(ticket) != CLOSED) {
        const int64_t end = share.end.load(std::memory_order_acquire);
        const Task task = task_.load(std::memory_order_acquire);
        void* context = context_.load(std::memory_order_acquire);
        const auto index = static_cast<int64_t>(index_of(ticket));
        if (index < end) {
            if (share.ticket.compare_exchange_weak(ticket, ticket + 1)) {
                task(context, index);
                ++finished;
                increment(heartbeat);
            }
        } else if (share.ticket.load() == ticket) {
            break;  // the ticket is that of before `end` was read, so `end` is this job's
        }
        ticket = share.ticket.load();
    }
    return job_of(ticket);
}

// Report finished tasks. The thread whose report is the last one finds the job complete.
void Pool::add_finished(Share& home, int64_t count) {
    home.done.fetch_add(count);
    if (!caller_sleeps_.load() || !is_complete()) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_caller_.notify_one();
}

bool Pool::is_complete() const {
    int64_t done = 0;
    for (const Share& share : shares_) done += share.done.load();
    return done == num_tasks_.load(std::memory_order_relaxed);
}

void Pool::await_completion() {
    const auto complete = [this] { return is_complete(); };
    if (spin(complete)) return;
    caller_sleeps_ = true;
    std::unique_lock<std::mutex> lock(mutex_);
    wake_caller_.wait(lock, complete);
    caller_sleeps_ = false;
}

void Pool::work(size_t share) {
    do {
        await_job_after(run_open_tasks(share, nullptr), shares_[share]);
    } while (!stopping_);
}

void Pool::await_job_after(uint64_t seen, const Share& home) {
    const auto arrived = [this, seen, &home] { return stopping_.load() || job_of(home.ticket.load()) != seen; };
    if (spin(arrived)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleeping_workers_;
    wake_workers_.wait(lock, arrived);
    --sleeping_workers_;
}

}  // namespace smoe
