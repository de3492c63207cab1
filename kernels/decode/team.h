// Threads that live as long as the decoder and share a list of phases.
//
// A phase is done when its chunks are done, not when every thread has arrived, so a thread that another program has pushed off its core
// holds nobody up unless it holds a chunk. A chunk is taken by compare-and-swap on one word of (run, chunks, next chunk); a thread that
// wakes up late sees another run in the word and leaves. The caller's thread works too; one thread alone starts none.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <unistd.h>
#endif

struct alignas(64) Phase {
    std::atomic<uint64_t> next{0}, done{0};  // run: 24 bits, chunks: 20 bits, next or finished chunks: 20 bits
};

class Team {
  public:
    typedef std::function<void(int stage, int chunk, int thread, bool first)> Work;
    typedef std::function<void(int thread, bool begin)> Border;

    Team(int size, int max_phases, Work work, Border border)
        : phases_(max_phases), work_(std::move(work)), border_(std::move(border)), size_(size) {}

    ~Team() {
        if (threads_.empty()) return;
        if (process_ != process()) {  // the child of a fork has no threads to join
            leave_to_parent();
            return;
        }
        {
            std::lock_guard<std::mutex> hold(bed_->mutex);
            stop_ = true;
        }
        bed_->wake.notify_all();
        for (auto& t : threads_) t->join();
    }

    int size() const { return size_; }
    void clear() { count_ = 0; }
    void add(int chunks) {  // the phases are numbered in order
        staged_.resize(count_ + 1);
        staged_[count_++] = chunks;
    }

    // All phases in order; `together` false: on this thread alone.
    void run(bool together) {
        const uint64_t run = ++run_ & 0xffffff;
        for (int i = 0; i < count_; i++) {
            const uint64_t word = run << 40 | static_cast<uint64_t>(staged_[i]) << 20;
            phases_[i].done.store(word, std::memory_order_relaxed);
            phases_[i].next.store(word, std::memory_order_release);
        }
        if (together && size_ > 1) {
            start();
            {
                std::lock_guard<std::mutex> hold(bed_->mutex);
                published_.store(run << 16 | static_cast<uint64_t>(count_), std::memory_order_release);
            }
            if (asleep_.load() > 0) bed_->wake.notify_all();
        }
        work(0, run, count_);
    }

  private:
    static int64_t process() {
#if defined(__linux__) || defined(__APPLE__)
        return getpid();
#else
        return 0;
#endif
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    struct Bed {
        std::mutex mutex;
        std::condition_variable wake;
    };

    void leave_to_parent() {
        for (auto& t : threads_) t.release();
        threads_.clear();
        bed_.release();
    }

    void start() {
        if (!threads_.empty() && process_ == process()) return;
        leave_to_parent();
        bed_.reset(new Bed);
        process_ = process();
        asleep_ = 0;
        for (int i = 1; i < size_; i++) threads_.emplace_back(new std::thread([this, i] { live(i); }));
    }

    void live(int thread) {
        uint64_t seen = 0;
        for (;;) {
            uint64_t word = published_.load(std::memory_order_acquire);
            for (int spin = 0; word == seen && spin < 4000; spin++) {  // up to 0.2 ms, the gap between two tokens
                pause();
                word = published_.load(std::memory_order_acquire);
            }
            if (word == seen) {
                std::unique_lock<std::mutex> hold(bed_->mutex);
                asleep_++;
                bed_->wake.wait(hold, [&] { return stop_ || published_.load() != seen; });
                asleep_--;
                if (stop_) return;
                word = published_.load();
            }
            seen = word;
            work(thread, word >> 16, static_cast<int>(word & 0xffff));
        }
    }

    void work(int thread, uint64_t run, int count) {
        constexpr uint64_t LOW = 0xfffff;
        bool begun = false;
        for (int i = 0; i < count; i++) {
            Phase& p = phases_[i];
            bool first = true;
            uint64_t word = p.next.load(std::memory_order_acquire);
            const uint64_t chunks = word >> 20 & LOW;
            for (;;) {
                if (word >> 40 != run) return border_(thread, false);
                if ((word & LOW) >= chunks) break;
                if (!p.next.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
                if (!begun) border_(thread, true), begun = true;
                work_(i, static_cast<int>(word & LOW), thread, first);
                first = false;
                p.done.fetch_add(1, std::memory_order_release);
                word = p.next.load(std::memory_order_acquire);
            }
            const uint64_t whole = run << 40 | chunks << 20 | chunks;
            for (int spin = 0;; spin++) {
                const uint64_t now = p.done.load(std::memory_order_acquire);
                if (now == whole) break;
                if (now >> 40 != run) return border_(thread, false);
                if (spin < 2000) pause();
                else std::this_thread::yield();
            }
        }
        border_(thread, false);
    }

    std::vector<Phase> phases_;
    std::vector<int> staged_;
    Work work_;
    Border border_;
    std::vector<std::unique_ptr<std::thread>> threads_;
    std::unique_ptr<Bed> bed_;
    std::atomic<uint64_t> published_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> stop_{false};
    uint64_t run_ = 0;
    int64_t process_ = 0;
    int size_ = 1, count_ = 0;
};
