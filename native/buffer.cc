#include "buffer.h"

#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <new>
#include <utility>

namespace mainspring {

namespace {

constexpr std::size_t kAlign = 64;
constexpr std::size_t kBlocks = 64;  // kept of one size class

}  // namespace

Buffer::Buffer(std::size_t bytes, Pages pages) : bytes_(bytes) {
  if (bytes == 0) return;
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Advice only: without huge pages everything works, with more TLB misses.
  if (pages == Pages::huge) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#else
  (void)pages;
#endif
  data_ = static_cast<std::byte*>(memory);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

// Room in the lists is reserved here, because give() must not throw.
Arena::Arena(std::size_t limit) : limit_(limit) {
  for (auto& list : free_) list.reserve(kBlocks);
}

struct Arena::Header {
  std::size_t bytes;
  int size_class;
};

// Four classes to each power of two: at most a fifth of a block is unused.
int Arena::size_class(std::size_t bytes) {
  const int log = std::bit_width(bytes) - 1;
  const int quarter = int((bytes >> (log - 2)) & 3);
  return (log - 11) * 4 + quarter;
}

void* Arena::take(std::size_t bytes) {
  bytes = bytes < 4096 ? 4096 : bytes;
  const int log = std::bit_width(bytes) - 1;
  const std::size_t step = std::size_t{1} << (log - 2);
  bytes = (bytes + step - 1) & ~(step - 1);
  const int index = size_class(bytes);
  if (index < 64) {
    const std::lock_guard lock(mutex_);
    auto& list = free_[index];
    if (!list.empty()) {
      Header* header = list.back();
      list.pop_back();
      kept_ -= header->bytes;
      return reinterpret_cast<std::byte*>(header) + kAlign;
    }
  }
  void* memory = std::aligned_alloc(kAlign, bytes + kAlign);
  if (memory == nullptr) throw std::bad_alloc();
  new (memory) Header{bytes, index};
  return static_cast<std::byte*>(memory) + kAlign;
}

void Arena::give(void* block) noexcept {
  auto* header = reinterpret_cast<Header*>(static_cast<std::byte*>(block) - kAlign);
  if (header->size_class < 64) {
    const std::lock_guard lock(mutex_);
    if (kept_ + header->bytes <= limit_) {
      auto& list = free_[header->size_class];
      if (list.size() < list.capacity()) {
        list.push_back(header);
        kept_ += header->bytes;
        return;
      }
    }
  }
  std::free(header);
}

Arena::~Arena() {
  for (auto& list : free_) {
    for (Header* header : list) std::free(header);
  }
}

}  // namespace mainspring
