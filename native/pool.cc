#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mainspring {

namespace {

using Clock = std::chrono::steady_clock;

// Regions of one decode step follow each other within a few microseconds; a worker that spins a
// little longer than that is never asleep inside a step and never burns a core between steps.
constexpr auto kSpin = std::chrono::microseconds(40);

// A part that no region has.
constexpr std::uint32_t kClosed = 0xffffffff;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or kSpin has passed; returns the last ready().
template <class Ready>
bool spin(const Ready& ready) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return ready();
}

constexpr std::uint32_t region_of(std::uint64_t ticket) { return std::uint32_t(ticket >> 32); }
constexpr std::uint64_t ticket_of(std::uint32_t region, std::uint32_t part) {
  return std::uint64_t{region} << 32 | part;
}
constexpr std::uint32_t part_of(std::uint64_t ticket) { return std::uint32_t(ticket); }

}  // namespace

Pool::Pool(int threads) {
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { work(thread); });
  }
}

Pool::~Pool() {
  stop_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(int parts, Task task, const void* context) {
  if (parts <= 1 || workers_.empty()) {
    // `thread` indexes scratch memory, so the caller's place is guarded here too.
    const std::lock_guard lock(callers_);
    for (int part = 0; part < parts; ++part) task(context, part, 0);
    return;
  }
  const std::lock_guard lock(callers_);
  // Close the old region before its task is overwritten: a late thread that already reads the new
  // numbers must fail to take another part of the old ticket.
  const std::uint32_t old = region_of(ticket_.load(std::memory_order_relaxed));
  ticket_.store(ticket_of(old, kClosed), std::memory_order_relaxed);
  task_.store(task, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  parts_.store(parts, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  const std::uint32_t region = old + 1;
  ticket_.store(ticket_of(region, 0), std::memory_order_release);
  bell_.fetch_add(1, std::memory_order_release);
  bell_.notify_all();
  take_parts(region, 0);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == parts; };
  if (spin(finished)) return;
  for (int done = done_.load(std::memory_order_acquire); done != parts;
       done = done_.load(std::memory_order_acquire)) {
    done_.wait(done, std::memory_order_acquire);
  }
}

void Pool::take_parts(std::uint32_t region, int thread) {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (region_of(ticket) == region) {
    // These three belong to `region` if the exchange below succeeds: another region's are written
    // only after the ticket was closed, and that happens after all parts, including the one taken
    // here, are done.
    const Task task = task_.load(std::memory_order_acquire);
    const void* context = context_.load(std::memory_order_acquire);
    const int parts = parts_.load(std::memory_order_acquire);
    if (part_of(ticket) >= std::uint32_t(parts)) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    task(context, int(part_of(ticket)), thread);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) done_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

// Waits for a region other than `seen`; false: the pool is closing.
bool Pool::await_region(std::uint32_t seen) {
  const auto news = [&] {
    return region_of(ticket_.load(std::memory_order_acquire)) != seen ||
           stop_.load(std::memory_order_relaxed);
  };
  if (!spin(news)) {
    for (;;) {
      const std::int32_t rung = bell_.load(std::memory_order_acquire);
      if (news()) break;
      bell_.wait(rung, std::memory_order_acquire);
    }
  }
  return !stop_.load(std::memory_order_relaxed);
}

void Pool::work(int thread) {
  std::uint32_t seen = 0;
  while (await_region(seen)) {
    seen = region_of(ticket_.load(std::memory_order_acquire));
    take_parts(seen, thread);
  }
}

}  // namespace mainspring
