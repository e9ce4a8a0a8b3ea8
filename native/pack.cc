// Matrices into the layouts of `Weight`.
#include "isa.h"
#include "quantize.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

// Multiples of 2^-112 are how a half looks when its bits are read as a float.
inline float from_half(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000) << 16;
  const std::uint32_t size = std::uint32_t(half & 0x7fff) << 13;
  const std::uint32_t finite = bits_as<std::uint32_t>(bits_as<float>(size) * 0x1p112f);
  const bool special = (half & 0x7c00) == 0x7c00;
  return bits_as<float>(sign | (special ? 0x7f800000 | size : finite));
}

// `count` numbers from element `at` of the matrix, then zeros up to kGroup.
void read(const void* matrix, Source source, std::int64_t at, int count, float* out) {
  std::memset(out, 0, sizeof(float) * kGroup);
  if (source == Source::float32) {
    std::memcpy(out, static_cast<const float*>(matrix) + at, sizeof(float) * unsigned(count));
  } else if (source == Source::bf16) {
    const auto* from = static_cast<const std::uint16_t*>(matrix) + at;
    for (int i = 0; i < count; ++i) out[i] = bits_as<float>(std::uint32_t(from[i]) << 16);
  } else {
    const auto* from = static_cast<const std::uint16_t*>(matrix) + at;
    for (int i = 0; i < count; ++i) out[i] = from_half(from[i]);
  }
}

std::uint16_t to_bf16(float x) {
  if (x != x) return 0x7fc0;
  const auto bits = bits_as<std::uint32_t>(x);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void pack_float32(const float* row, int depth, int column, std::byte* group) {
  auto* to = reinterpret_cast<float*>(group) + column;
  for (int i = 0; i < depth; ++i) to[i * kPanel] = row[i];
}

void pack_bf16(const float* row, int depth, int column, std::byte* group) {
  auto* to = reinterpret_cast<std::uint16_t*>(group) + column * 2;
  for (int i = 0; i < depth; i += 2) {
    to[i * kPanel] = to_bf16(row[i]);
    to[i * kPanel + 1] = to_bf16(row[i + 1]);
  }
}

void pack_int8(const float* row, int depth, int column, std::byte* group) {
  const Scale scale = scale_of(row, kGroup, 127.0f);
  std::uint8_t bytes[kGroup];
  std::int32_t integers[kGroup];
  for (int i = 0; i < kGroup; i += lanes) store(integers + i, quantized(load(row + i), scale, 127));
  for (int i = 0; i < kGroup; ++i) bytes[i] = std::uint8_t(integers[i] + 128);
  for (int i = 0; i < depth; i += 4) {
    std::memcpy(group + (i * kPanel + column * 4), bytes + i, 4);
  }
  reinterpret_cast<float*>(group + depth * kPanel)[column] = scale.step;
}

// Integers -8 .. 7 nearest to x / step, and the squared error they leave, added in an order that is
// the same for every instruction set (and for the reference).
inline float fit(const float* x, float step, std::int8_t* integers) {
  const float inverse = 1.0f / step;
  float error[kSubgroup];
  for (int i = 0; i < kSubgroup; i += lanes) {
    const Float v = load(x + i);
    const Float bounded = max(broadcast(-8.0f), min(broadcast(7.0f), v * broadcast(inverse)));
    const Int integer = round_even(bounded);
    const Float miss = v - to_float(integer) * broadcast(step);
    store(error + i, miss * miss);
    for (int lane = 0; lane < lanes; ++lane) integers[i + lane] = std::int8_t(integer[lane]);
  }
  for (int half = kSubgroup / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) error[i] += error[i + half];
  }
  return error[0];
}

// The multiplier of 32 numbers, and their integers: value = integer * multiplier * step, at most
// 8 * 15 = 120 steps. The largest number may take the end of the range that reaches further, -8, so
// both signs are tried, and clipping it a little often costs less than a coarser grid.
int fit_subgroup(const float* x, float step, std::int8_t* best) {
  float size = 0.0f;
  for (int i = 0; i < kSubgroup; ++i) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    size = magnitude > size ? magnitude : size;
  }
  const int top = int(__builtin_ceilf(size / (8.0f * step)));
  int chosen = 0;
  float least = __builtin_inff();
  std::memset(best, 0, kSubgroup);
  for (int back = -1; back < 4; ++back) {
    const int m = top - back;
    if (m < 1 || m > 15) continue;
    for (const int sign : {1, -1}) {
      std::int8_t integers[kSubgroup];
      const float error = fit(x, step * float(sign * m), integers);
      if (error < least) {
        least = error;
        chosen = sign * m;
        std::memcpy(best, integers, kSubgroup);
      }
    }
  }
  return chosen;
}

void pack_int4(const float* row, int depth, int column, std::byte* group) {
  const Scale scale = scale_of(row, kGroup, 120.0f);
  std::int8_t integers[kGroup] = {};
  auto* multipliers = reinterpret_cast<std::int8_t*>(group + depth * kPanel / 2);
  for (int sub = 0; sub < depth / kSubgroup; ++sub) {
    int m = 0;
    if (scale.inverse > 0.0f) {
      m = fit_subgroup(row + sub * kSubgroup, scale.step, integers + sub * kSubgroup);
    }
    multipliers[sub * kPanel + column] = std::int8_t(m);
  }
  for (int i = 0; i < depth; i += 8) {
    for (int j = 0; j < 4; ++j) {
      const int low = integers[i + j] + 8, high = integers[i + j + 4] + 8;
      group[(i / 2) * kPanel + column * 4 + j] = std::byte(low | high << 4);
    }
  }
  reinterpret_cast<float*>(group + depth * kPanel / 2 + depth / kSubgroup * kPanel)[column] =
      scale.step;
}

}  // namespace

void pack(const Context& context, const void* matrix, Source source, Weight& weight) {
  parallel(context.pool, weight.panels(), [&](std::int64_t panel, int) {
    alignas(64) float row[kGroup];
    for (std::int64_t g = 0; g < weight.groups(); ++g) {
      const int depth = weight.depth(g);
      const std::int64_t left = weight.k - g * kGroup;
      const int count = int(left < kGroup ? left : kGroup);
      auto* group = const_cast<std::byte*>(weight.group(panel, g));
      for (int column = 0; column < kPanel; ++column) {
        const std::int64_t n = panel * kPanel + column;
        // Outputs past n are zeros.
        read(matrix, source, n < weight.n ? n * weight.k + g * kGroup : 0, n < weight.n ? count : 0,
             row);
        switch (weight.format) {
          case Format::float32: pack_float32(row, depth, column, group); break;
          case Format::bf16: pack_bf16(row, depth, column, group); break;
          case Format::int8: pack_int8(row, depth, column, group); break;
          case Format::int4: pack_int4(row, depth, column, group); break;
          case Format::q8:
          case Format::q4: break;  // only pack_codes makes them
        }
      }
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
