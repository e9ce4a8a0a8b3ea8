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
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kSlab = std::size_t{64} << 20;  // address space: only what is touched is memory

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

std::shared_ptr<std::byte> map(std::size_t bytes) {
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return {static_cast<std::byte*>(memory), [bytes](std::byte* data) { munmap(data, bytes); }};
}

// Address space where huge buffers are cut off, one after the other.
struct Slab {
  std::weak_ptr<std::byte> memory;
  std::byte* next = nullptr;
  std::size_t left = 0;
};

std::shared_ptr<std::byte> cut(std::size_t bytes) {
  static std::mutex mutex;
  static Slab slab;
  const std::lock_guard lock(mutex);
  bytes = round_up(bytes, kAlign);
  auto memory = slab.memory.lock();
  if (memory == nullptr || slab.left < bytes) {
    const std::size_t size = bytes > kSlab ? round_up(bytes, kHugePage) : kSlab;
    memory = map(size + kHugePage);
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory.get()) % kHugePage;
    slab = {memory, memory.get() + (kHugePage - past) % kHugePage, size};
#ifdef MADV_HUGEPAGE
    // Advice only: without huge pages everything works, with more TLB misses.
    (void)madvise(slab.next, size, MADV_HUGEPAGE);
#endif
  }
  std::byte* data = slab.next;
  slab.next += bytes;
  slab.left -= bytes;
  return {std::move(memory), data};
}

}  // namespace

Buffer::Buffer(std::size_t bytes, Pages pages) : bytes_(bytes) {
  if (bytes != 0) data_ = pages == Pages::huge ? cut(bytes) : map(bytes);
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
