// New keys and values into the blocks of the KV cache; its formats are in operations.h.
#pragma once

#include "operations.h"
#include "quantize.h"

namespace mainspring::MAINSPRING_ISA {

// Query vectors (rows x heads of a KV head) of a work item; one row may have more heads.
inline constexpr int kQueries = 64;

struct Layout {
  explicit Layout(const Attention& a)
      : head(a.cache.head),
        width((a.heads + 2 * a.cache.heads) * head),
        group(int(a.heads / a.cache.heads)),
        rows(group < kQueries ? kQueries / group : 1) {}

  std::int64_t head;
  std::int64_t width;  // of a row of qkv
  int group;           // query heads of a KV head
  int rows;            // of a work item, at most
};


inline std::int64_t position_of(const Attention& a, std::int64_t sequence, std::int64_t row) {
  return a.lengths[sequence] - (a.starts[sequence + 1] - row);
}

inline std::int64_t block_of(const Attention& a, std::int64_t sequence, std::int64_t index) {
  return a.tables[sequence * a.table_width + index];
}

inline std::uint16_t to_bf16(float x) {
  if (x != x) return 0x7fc0;
  const auto bits = bits_as<std::uint32_t>(x);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The Hadamard transform of the largest power of two that divides `head`, on each such part of a
// head, scaled so that it is its own inverse. Scores do not change when queries and keys are turned
// alike, and one channel 100 times the rest becomes a little in all: what an int8 scale can hold.
inline void turn(float* x, std::int64_t head) {
  const std::int64_t size = head & -head;
  for (std::int64_t half = 1; half < size; half *= 2) {
    for (std::int64_t i = 0; i < head; i += 2 * half) {
      for (std::int64_t j = i; j < i + half; ++j) {
        const float low = x[j], high = x[j + half];
        x[j] = low + high;
        x[j + half] = low - high;
      }
    }
  }
  const float scale = 1.0f / __builtin_sqrtf(float(size));
  for (std::int64_t i = 0; i < head; ++i) x[i] *= scale;
}

// A head, turned, as integers of -127..127; returns their step.
inline float turned(const float* x, std::int64_t head, std::int32_t* integers) {
  alignas(64) float y[kMaxHead] = {};
  std::memcpy(y, x, sizeof(float) * std::size_t(head));
  turn(y, head);
  const int count = int((head + lanes - 1) / lanes * lanes);
  const Scale scale = scale_of(y, count, 127.0f);
  for (int i = 0; i < count; i += lanes) store(integers + i, quantized(load(y + i), scale, 127));
  return scale.step;
}

inline void keep_int8(const Attention& a, std::int64_t block, std::int64_t at,
                      std::int64_t kv_head, const float* key, const float* value) {
  const std::int64_t wide = a.cache.wide();
  auto* k = reinterpret_cast<std::uint8_t*>(a.cache.keys(a.layer, block, kv_head)) + at * 4;
  auto* v = reinterpret_cast<std::uint8_t*>(a.cache.values(a.layer, block, kv_head)) +
            at / 4 * wide * 4 + at % 4;
  float* scales = a.cache.scales(a.layer, block, kv_head);
  std::int32_t integers[kMaxHead];
  scales[at] = turned(key, a.cache.head, integers);
  for (std::int64_t i = 0; i < a.cache.head; ++i) {
    k[i / 4 * kBlock * 4 + i % 4] = std::uint8_t(integers[i] + 128);
  }
  scales[kBlock + at] = turned(value, a.cache.head, integers);
  for (std::int64_t i = 0; i < a.cache.head; ++i) v[i * 4] = std::uint8_t(integers[i] + 128);
}

// Keys and values of one row and head into their block.
inline void keep(const Attention& a, std::int64_t sequence, std::int64_t row, std::int64_t kv_head) {
  const Layout layout(a);
  const std::int64_t position = position_of(a, sequence, row);
  const std::int64_t block = block_of(a, sequence, position / kBlock), at = position % kBlock;
  const float* key = a.qkv + row * layout.width + (a.heads + kv_head) * layout.head;
  const float* value = key + a.cache.heads * layout.head;
  if (a.cache.format == Format::int8) return keep_int8(a, block, at, kv_head, key, value);
  std::byte* keys = a.cache.keys(a.layer, block, kv_head);
  std::byte* values = a.cache.values(a.layer, block, kv_head);
  const std::int64_t wide = a.cache.wide();
  if (a.cache.format == Format::bf16) {
    auto* k = reinterpret_cast<std::uint16_t*>(keys) + at * 2;
    auto* v = reinterpret_cast<std::uint16_t*>(values) + at / 2 * wide * 2 + at % 2;
    for (std::int64_t i = 0; i < layout.head; i += 2) {
      k[i * kBlock] = to_bf16(key[i]);
      k[i * kBlock + 1] = to_bf16(key[i + 1]);
    }
    for (std::int64_t i = 0; i < layout.head; ++i) v[i * 2] = to_bf16(value[i]);
  } else {
    auto* k = reinterpret_cast<float*>(keys) + at;
    for (std::int64_t i = 0; i < layout.head; ++i) k[i * kBlock] = key[i];
    std::memcpy(reinterpret_cast<float*>(values) + at * wide, value,
                sizeof(float) * std::size_t(layout.head));
  }
}

// The values of tokens after the last one of a block that this call began. They are multiplied by
// zero, and what an earlier owner of the block left there could be NaN.
inline void clear_rest(const Attention& a, std::int64_t sequence, std::int64_t kv_head) {
  const std::int64_t end = a.lengths[sequence];
  const std::int64_t fresh = end - (a.starts[sequence + 1] - a.starts[sequence]);
  const std::int64_t begin = (end - 1) / kBlock * kBlock;
  if (end % kBlock == 0 || begin < fresh) return;
  const std::int64_t block = block_of(a, sequence, begin / kBlock);
  std::byte* values = a.cache.values(a.layer, block, kv_head);
  const std::int64_t wide = a.cache.wide();
  for (std::int64_t at = end % kBlock; at < kBlock; ++at) {
    if (a.cache.format == Format::int8) {
      a.cache.scales(a.layer, block, kv_head)[kBlock + at] = 0.0f;
    } else if (a.cache.format == Format::bf16) {
      auto* v = reinterpret_cast<std::uint16_t*>(values) + at / 2 * wide * 2 + at % 2;
      for (std::int64_t i = 0; i < wide; ++i) v[i * 2] = 0;
    } else {
      std::memset(reinterpret_cast<float*>(values) + at * wide, 0,
                  sizeof(float) * std::size_t(wide));
    }
  }
}

inline void keep_all(const Context& context, const Attention& a) {
  const std::int64_t rows = a.starts[a.sequences];
  // Stores into blocks that are not in the cache wait, so a few rows are worth sharing already.
  const std::int64_t piece = rows < 8 ? rows : rows < 128 ? (rows + 3) / 4 : 32;
  parallel(context.pool, (rows + piece - 1) / piece, [&](std::int64_t part, int) {
    const std::int64_t end = (part + 1) * piece < rows ? (part + 1) * piece : rows;
    std::int64_t sequence = 0;
    for (std::int64_t row = part * piece; row < end; ++row) {
      while (a.starts[sequence + 1] <= row) ++sequence;
      for (std::int64_t h = 0; h < a.cache.heads; ++h) {
        keep(a, sequence, row, h);
        if (row + 1 == a.starts[sequence + 1]) clear_rest(a, sequence, h);
      }
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
