// The online softmax: what queries have seen so far, and how two spans of a context become one.
#pragma once

#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

inline constexpr float kNothing = -__builtin_inff();

// 2^x for x <= 0; most often 0, where nothing larger was found.
inline float power(float x) { return x == 0.0f ? 1.0f : exp2(broadcast(x))[0]; }

// Of each of some queries.
struct Softmax {
  float* out;    // [query][wide]: sum of 2^(score - peak) * value
  float* total;  // [query][lanes]: sum of 2^(score - peak), still to be added up
  float* peak;   // [query]: largest score; kNothing: no token yet

  // In `size(count, wide)` floats.
  Softmax(float* memory, std::int64_t count, std::int64_t wide)
      : out(memory), total(out + count * wide), peak(total + count * lanes) {}
  static constexpr std::int64_t size(std::int64_t count, std::int64_t wide) {
    return count * (wide + lanes + 1);
  }

  void clear(std::int64_t count, std::int64_t wide) const {
    std::memset(out, 0, sizeof(float) * std::size_t(size(count, wide)));
    for (std::int64_t i = 0; i < count; ++i) peak[i] = kNothing;
  }

  // Adds what the same queries have seen of a later part of the context. Adding to nothing changes
  // no bit; nor does adding nothing, which would otherwise be -inf - -inf.
  void add(const Softmax& later, std::int64_t count, std::int64_t wide) const {
    for (std::int64_t i = 0; i < count; ++i) {
      if (later.peak[i] == kNothing && later.total[i * lanes] == 0.0f) continue;
      const float next = later.peak[i] > peak[i] ? later.peak[i] : peak[i];
      const Float old = broadcast(power(peak[i] - next));
      const Float fresh = broadcast(power(later.peak[i] - next));
      const auto merge = [&](float* mine, const float* theirs, std::int64_t size) {
        for (std::int64_t j = i * size; j < (i + 1) * size; j += lanes) {
          store(mine + j, fma(load(theirs + j), fresh, load(mine + j) * old));
        }
      };
      merge(out, later.out, wide);
      merge(total, later.total, lanes);
      peak[i] = next;
    }
  }
};

}  // namespace mainspring::MAINSPRING_ISA
