// Large zeroed memory, on huge pages where the system has them: a third more bandwidth beyond the third cache level.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

class Pages {
  public:
    Pages() {}
    // Room for `bytes` and some to prefetch beyond. Takes physical memory only where it is written. Throws std::bad_alloc.
    explicit Pages(int64_t bytes) {
        constexpr int64_t HUGE = 2 << 20, BEYOND = 16 << 10;
        size_ = bytes + BEYOND + (bytes >= HUGE ? HUGE : 64);
#if defined(__linux__)
        raw_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (raw_ == MAP_FAILED) raw_ = nullptr;
#else
        raw_ = calloc(size_, 1);
#endif
        if (!raw_) throw std::bad_alloc();
        const uintptr_t align = bytes >= HUGE ? HUGE : 64;
        data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw_) + align - 1) / align * align);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (bytes >= HUGE) madvise(data, static_cast<char*>(raw_) + size_ - data, MADV_HUGEPAGE);
#endif
    }
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Pages() {
#if defined(__linux__)
        if (raw_) munmap(raw_, size_);
#else
        free(raw_);
#endif
    }
    char* data = nullptr;

  private:
    void swap(Pages& other) {
        std::swap(data, other.data);
        std::swap(raw_, other.raw_);
        std::swap(size_, other.size_);
    }
    void* raw_ = nullptr;
    int64_t size_ = 0;
};
