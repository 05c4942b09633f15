// Memory that grows and is kept: workspaces of kernels that are called again and again.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace maquette {

// Aligned to cache lines. Contents are undefined after `resize`, which allocates only when it grows beyond what it had.
template <typename T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>, "moved and reused as plain bytes");

  public:
    T* resize(std::size_t count) {
        if (count > capacity_) {
            const std::size_t wanted = count + count / 4;  // growing scenes grow a little at each densification
            data_.reset(static_cast<T*>(::operator new(wanted * sizeof(T), kAlignment)));
            capacity_ = wanted;
        }
        size_ = count;
        return data_.get();
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) { return data_.get()[i]; }
    const T& operator[](std::size_t i) const { return data_.get()[i]; }

    // All bits set: NaN in every float. Tests prove with it that nothing unwritten is read.
    void poison() { std::memset(static_cast<void*>(data_.get()), 0xff, capacity_ * sizeof(T)); }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Release {
        void operator()(T* data) const { ::operator delete(data, kAlignment); }
    };
    std::unique_ptr<T, Release> data_;
    std::size_t size_ = 0, capacity_ = 0;
};

}  // namespace maquette
