// Memory: large lasting buffers, and an arena of short-lived ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mainspring {

// Zeroed memory aligned to 64 bytes, taken from the system page by page when touched.
//
// Buffers in huge pages lie side by side in slabs, so that a matrix of 1 MB has huge pages too and
// none is left half empty; a slab goes back to the system with the last of its buffers.
class Buffer {
 public:
  enum class Pages { small, huge };

  Buffer() = default;
  Buffer(std::size_t bytes, Pages pages);
  Buffer(Buffer&&) noexcept = default;
  Buffer& operator=(Buffer&&) noexcept = default;

  std::byte* data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::shared_ptr<std::byte> data_;
  std::size_t bytes_ = 0;
};

// Activations live for microseconds. Returning their pages to the system and faulting them in again
// would cost more than computing them, so freed blocks are kept, up to `limit` bytes.
class Arena {
 public:
  explicit Arena(std::size_t limit);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Uninitialised, aligned to 64 bytes.
  void* take(std::size_t bytes);
  void give(void* block) noexcept;

 private:
  struct Header;  // sits in the 64 bytes before a block

  static int size_class(std::size_t bytes);

  std::mutex mutex_;
  std::vector<Header*> free_[64];
  std::size_t limit_;
  std::size_t kept_ = 0;
};

// One arena block for the length of a scope.
template <class T>
class Scratch {
 public:
  Scratch(Arena& arena, std::int64_t count)
      : arena_(arena), data_(static_cast<T*>(arena.take(sizeof(T) * std::size_t(count)))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { arena_.give(data_); }

  T* data() const { return data_; }

 private:
  Arena& arena_;
  T* data_;
};

}  // namespace mainspring
