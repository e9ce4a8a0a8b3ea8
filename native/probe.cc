// How fast this machine computes and reads, measured with the inner loop that the kernels use.
#include <chrono>

#include "isa.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

using Clock = std::chrono::steady_clock;

// One pass over a group of weights; returns a sum so that no product can be left out.
Int pass(const Int8::Element* x, const std::byte* weights) {
  Int sums[tile_rows][tile_vecs] = {};
  multiply<Int8, tile_rows, tile_vecs>(
      x, kGroup, {weights, weights + tile_vecs / 2 * lanes * 4, kPanel * 4}, kGroup / Int8::width,
      sums);
  Int total{};
  for (auto& row : sums) {
    for (const Int sum : row) total += sum;
  }
  return total;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double int8_rate(const Context& context, double seconds) {
  const int threads = context.pool.threads();
  const Scratch<std::byte> weights(context.arena, kGroup * kPanel);
  const Scratch<Int8::Element> x(context.arena, tile_rows * kGroup);
  std::memset(weights.data(), 1, kGroup * kPanel);
  std::memset(x.data(), 1, sizeof(Int8::Element) * tile_rows * kGroup);
  const Scratch<double> rates(context.arena, threads);
  parallel(context.pool, threads, [&](std::int64_t part, int) {
    // The best of short slices: a longer one would also measure whoever shares the core.
    constexpr int passes = 200;
    constexpr double operations = 2.0 * passes * kGroup * tile_rows * tile_vecs * lanes;
    const auto start = Clock::now();
    double best = 0.0;
    while (seconds_since(start) < seconds) {
      const auto slice = Clock::now();
      Int total{};
      for (int i = 0; i < passes; ++i) {
        total += pass(x.data(), weights.data());
        asm volatile("" : : : "memory");
      }
      asm volatile("" : : "r"(&total) : "memory");
      const double rate = operations / seconds_since(slice);
      best = rate > best ? rate : best;
    }
    rates.data()[part] = best;
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
