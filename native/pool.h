// The compute threads: `threads - 1` workers and the calling thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mainspring {

class Pool {
 public:
  using Task = void (*)(const void* context, int part, int thread);

  explicit Pool(int threads);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool();

  int threads() const { return int(workers_.size()) + 1; }

  // Calls task(context, part, thread) for part 0 .. parts - 1, each once, in any order, on any
  // thread 0 .. threads - 1, and returns when all are done. A worker that is asleep or was
  // descheduled delays nobody: the awake threads take its parts.
  void run(int parts, Task task, const void* context);

 private:
  void work(int thread);
  void take_parts(std::uint32_t region, int thread);
  bool await_region(std::uint32_t seen);

  std::mutex callers_;
  std::vector<std::thread> workers_;

  // A region is one call of run(). Its number and the next part to take share one word, so that a
  // thread arriving late can never take a part of a region other than the one whose task it read.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int> parts_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<std::int32_t> bell_{0};  // rung for each region; workers sleep on it
  std::atomic<bool> stop_{false};
};

// body(part, thread) for each part.
template <class Body>
void parallel(Pool& pool, std::int64_t parts, const Body& body) {
  pool.run(
      int(parts),
      [](const void* context, int part, int thread) {
        (*static_cast<const Body*>(context))(part, thread);
      },
      &body);
}

}  // namespace mainspring
