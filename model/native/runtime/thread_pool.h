// The threads that every kernel runs on: persistent workers beside the calling thread, which is thread 0.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace smoe {

// Grows and is kept: fresh pages would cost more than what is computed in them.
class Memory {
  public:
    // Aligned to 64 bytes; valid until the next call. Throws std::bad_alloc.
    std::byte* room(size_t bytes);

  private:
    std::unique_ptr<std::byte[]> memory_;
    size_t bytes_ = 0;
};

// One caller at a time. Which thread runs a task is left to chance, so a task's result must not hang on it.
class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // The calling thread moves this counter on with each task that it runs: whoever reads it sees that work goes on.
    void beat_in(uint64_t* counter) { heartbeat_ = reinterpret_cast<std::atomic<uint64_t>*>(counter); }

    // Runs f(0) .. f(n - 1), each once, and returns when all are done. f must not throw. Needs n < 2^32 - 1.
    template <class F>
    void parallel_for(int64_t n, F&& f) {
        using Function = std::remove_reference_t<F>;
        run(
            n, [](void* context, int64_t task) { (*static_cast<Function*>(context))(task); },
            const_cast<void*>(static_cast<const void*>(&f)));
    }

    // Memory for one call's intermediate results; valid until the next call of scratch(). Throws std::bad_alloc.
    std::byte* scratch(size_t bytes) { return scratch_.room(bytes); }

    // Likewise for what outlives such calls; valid until the next call of activations().
    std::byte* activations(size_t bytes) { return activations_.room(bytes); }

  private:
    using Task = void (*)(void* context, int64_t task);

    void run(int64_t n, Task task, void* context);
    void work();
    void stop();
    uint64_t run_open_tasks(std::atomic<uint64_t>* heartbeat);
    void finish(Task task, void* context, int64_t index);
    void await_job_after(uint64_t seen);
    void await_completion();

    // High half: number of the job; low half: its next task, or CLOSED while the fields below are exchanged. A claim
    // compares both at once, so a worker that wakes late can never take a task of a job it has not read.
    std::atomic<uint64_t> ticket_;
    std::atomic<int64_t> num_tasks_{0};
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int64_t> remaining_{0};  // tasks of the job that are not finished

    std::mutex mutex_;
    std::condition_variable wake_workers_;
    std::condition_variable wake_caller_;
    std::atomic<int> sleeping_workers_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> workers_;
    std::atomic<uint64_t>* heartbeat_ = nullptr;  // read and written by the calling thread alone

    Memory scratch_;
    Memory activations_;
};

}  // namespace smoe
