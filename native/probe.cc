// How fast this machine computes and reads, measured with the inner loop that the kernels use.
#include <chrono>

#include "isa.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double int8_rate(const Context& context, double seconds) {
  constexpr int steps = kGroup / Int8::width;
  const int threads = context.pool.threads();
  const Scratch<std::byte> weights(context.arena, kGroup * kPanel);
  const Scratch<Int8::Element> x(context.arena, tile_rows * kGroup);
  std::memset(weights.data(), 1, kGroup * kPanel);
  std::memset(x.data(), 1, sizeof(Int8::Element) * tile_rows * kGroup);
  const Scratch<double> rates(context.arena, threads);
  parallel(context.pool, threads, [&](std::int64_t part, int) {
    const auto start = Clock::now();
    double operations = 0.0, spent = 0.0;
    Int sums[tile_rows][tile_vecs] = {};
    while (spent < seconds) {
      for (int i = 0; i < 1000; ++i) {
        const std::byte* low = weights.data();
        multiply<Int8, tile_rows, tile_vecs>(
            x.data(), kGroup, {low, low + tile_vecs / 2 * lanes * 4, kPanel * 4}, steps, sums);
        asm volatile("" : : "r"(sums) : "memory");
      }
      operations += 1000.0 * 2.0 * kGroup * tile_rows * tile_vecs * lanes;
      spent = seconds_since(start);
    }
    rates.data()[part] = operations / spent;
  });
  double total = 0.0;
  for (int i = 0; i < threads; ++i) total += rates.data()[i];
  return total;
}

double read_rate(const Context& context, const std::byte* data, std::int64_t bytes) {
  constexpr std::int64_t piece = 1 << 20;
  const std::int64_t parts = bytes / piece;
  const auto start = Clock::now();
  parallel(context.pool, parts, [&](std::int64_t part, int) {
    const auto* from = reinterpret_cast<const std::int32_t*>(data + part * piece);
    Int a{}, b{};
    for (std::int64_t i = 0; i < piece / 4; i += 2 * lanes) {
      a |= load(from + i);
      b |= load(from + i + lanes);
    }
    a |= b;
    asm volatile("" : : "r"(&a) : "memory");
  });
  return double(parts * piece) / seconds_since(start);
}

}  // namespace mainspring::MAINSPRING_ISA
