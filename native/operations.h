// What a set of kernels offers, as plain functions over plain memory. Callers have checked every
// shape and bound; kernels check nothing. Matrices are row-major; `rows` may be 0.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "pool.h"

namespace mainspring {

enum class Format : std::uint8_t { float32, bf16, int8, int4, q8, q4 };
enum class Source : std::uint8_t { float32, float16, bf16 };
enum class Activation : std::uint8_t { silu, gelu_tanh, clamped_silu };

inline constexpr int kPanel = 64;      // outputs that lie side by side in packed weights
inline constexpr int kGroup = 128;     // of k: one scale of a quantized matrix or activation
inline constexpr int kSubgroup = 32;   // of k: one multiplier of an int4 matrix
inline constexpr int kBlock = 32;      // tokens in a block of the KV cache
inline constexpr int kMaxHead = 640;   // numbers of a head
inline constexpr int kMaxGroup = 128;  // query heads of a KV head

struct Context {
  Pool& pool;
  Arena& arena;
};

// A matrix [n, k] as panels of 64 outputs; a panel is its groups of 128 k, one after the other, the
// last one cut to a multiple of 32 (k and n are padded with zeros). A group of `depth` k holds
//   float32  [depth][64] float
//   bf16     [depth / 2][64][2] bfloat16
//   int8     [depth / 4][64][4] value + 128; then [64] float scales
//   int4     [depth / 8][64][4] two values + 8 a byte, the lower half belongs to k 0-3 of 8, the
//            upper to k 4-7; then [depth / 32][64] int8 multipliers; then [64] float scales
//   q8       [depth / 4][64][4] code + 128; then [depth / 32][64] float scales
//   q4       [depth / 8][64][4] two codes a byte, in the order of int4; then [depth / 32][64] float
//            scales; then [depth / 32][64] float minimums
//
// kLayout names all of this and how numbers are rounded. Files keep these bytes, so a change of
// either, here or in pack.cc, takes a new name: tests/unit/kernels/test_pack.py notices.
inline constexpr const char* kLayout = "panels-1";

struct Weight {
  std::int64_t n, k;
  Format format;
  Buffer data;
  Buffer bias;  // [n] float, or empty

  std::int64_t panels() const { return (n + kPanel - 1) / kPanel; }
  std::int64_t groups() const { return (k + kGroup - 1) / kGroup; }
  int depth(std::int64_t group) const {
    const std::int64_t left = k - group * kGroup;
    return left >= kGroup ? kGroup : int((left + kSubgroup - 1) / kSubgroup * kSubgroup);
  }
  bool coded() const { return format == Format::q8 || format == Format::q4; }
  static std::int64_t group_bytes(Format format, int depth) {
    switch (format) {
      case Format::float32: return std::int64_t{4} * depth * kPanel;
      case Format::bf16: return std::int64_t{2} * depth * kPanel;
      case Format::int8: return std::int64_t{1} * depth * kPanel + 4 * kPanel;
      case Format::q8: return std::int64_t{1} * (depth + 4 * depth / kSubgroup) * kPanel;
      case Format::q4: return std::int64_t{1} * (depth / 2 + 8 * depth / kSubgroup) * kPanel;
      default: return std::int64_t{1} * (depth / 2 + depth / kSubgroup) * kPanel + 4 * kPanel;
    }
  }
  std::int64_t panel_bytes() const {
    const std::int64_t whole = (groups() - 1) * group_bytes(format, kGroup);
    return whole + group_bytes(format, depth(groups() - 1));
  }
  const std::byte* group(std::int64_t panel, std::int64_t index) const {
    return data.data() + panel * panel_bytes() + index * group_bytes(format, kGroup);
  }
};

// Integers of a matrix [n, k] and what makes them numbers: value = code * scale + minimum. Along k,
// `code_group(format)` codes share a scale, and in q4 a minimum.
struct Codes {
  const std::int8_t* values;  // [n, k]; of 4 bits: 0 .. 15 in q4, -8 .. 7 in int4
  const float* scales;        // [n, groups of k]
  const float* mins;          // the same in q4, null elsewhere
};

inline int code_group(Format format) {
  return format == Format::q8 || format == Format::q4 ? kSubgroup : kGroup;
}

// Keys and values of all layers. For each layer, block and head: first the keys, tokens side by
// side, then the values, numbers of a head side by side (rounded up to 32):
//   float32  keys [head][32], values [32][wide]
//   bf16     keys [head / 2][32][2], values [16][wide][2]: pairs of numbers, pairs of tokens
//   int8     keys [head / 4, rounded up][32][4] value + 128, values [8][wide][4] value + 128; then
//            float scales of the tokens' keys [32] and values [32]
struct Cache {
  std::int64_t layers, blocks, heads, head;
  Format format;
  Buffer data;

  std::int64_t wide() const { return (head + 31) / 32 * 32; }
  std::int64_t element() const {
    return format == Format::int8 ? 1 : format == Format::bf16 ? 2 : 4;
  }
  std::int64_t key_bytes() const { return (head * element() + 3) / 4 * 4 * kBlock; }
  std::int64_t value_bytes() const { return wide() * kBlock * element(); }
  std::int64_t scale_bytes() const { return format == Format::int8 ? 2 * kBlock * 4 : 0; }
  std::int64_t slot_bytes() const { return key_bytes() + value_bytes() + scale_bytes(); }
  std::byte* keys(std::int64_t layer, std::int64_t block, std::int64_t kv_head) const {
    return data.data() + ((layer * blocks + block) * heads + kv_head) * slot_bytes();
  }
  std::byte* values(std::int64_t layer, std::int64_t block, std::int64_t kv_head) const {
    return keys(layer, block, kv_head) + key_bytes();
  }
  float* scales(std::int64_t layer, std::int64_t block, std::int64_t kv_head) const {
    return reinterpret_cast<float*>(values(layer, block, kv_head) + value_bytes());
  }
  // Of one block: a layer's heads lie side by side.
  std::int64_t layer_bytes() const { return heads * slot_bytes(); }
  std::int64_t block_bytes() const { return layers * layer_bytes(); }
};

// See the contract of Kernels.attention in mainspring/kernels/__init__.py.
struct Attention {
  const float* qkv;  // [rows, (heads + 2 cache.heads) * cache.head]
  const Cache& cache;
  std::int64_t layer;
  std::int64_t sequences;
  const std::int32_t* starts;
  const std::int32_t* lengths;
  const std::int32_t* tables;
  std::int64_t table_width;
  std::int64_t heads;
  float scale;
  std::int64_t window;
  float softcap;
  const float* sinks;  // [heads], or null
  float* out;          // [rows, heads * cache.head]
};

// See the contract of Kernels.sample.
struct Sample {
  const float* logits;
  std::int64_t rows, vocabulary;
  const float* temperature;
  const std::int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const double* uniform;
  std::int32_t* chosen;
};

struct LogProbabilities {
  const float* logits;
  std::int64_t rows, vocabulary;
  const std::int32_t* ids;
  std::int64_t top;
  float* value;           // [rows]
  std::int32_t* best;     // [rows, top]
  float* best_value;      // [rows, top]
};

// A matrix [n, k] of low rank r: the product of two, both transposed, padded with zeros.
struct LowRank {
  std::int64_t n, k, r;
  Format format;  // float32 or bf16
  Buffer down;    // [k][wide()]
  Buffer up;      // panels of 64 columns: [stride() / 64][r][64]

  std::int64_t wide() const { return (r + 15) / 16 * 16; }
  std::int64_t stride() const { return (n + 63) / 64 * 64; }
};

// Rows whose product with `matrix` is added from column `first` on.
struct LowRankUse {
  const std::int32_t* rows;
  std::int64_t count;
  const LowRank* matrix;
  std::int64_t first;
};

// See the contract of Kernels.add_low_rank. No two uses write the same numbers.
struct LowRankSum {
  const float* x;  // [rows, k]
  std::int64_t k;
  float* y;        // [rows, n]
  std::int64_t n;
  const LowRankUse* uses;
  std::int64_t count;
};

struct Operations {
  const char* name;
  void (*pack)(const Context&, const void* matrix, Source, Weight&);
  void (*pack_codes)(const Context&, const Codes&, Weight&);
  void (*linear)(const Context&, const float* x, std::int64_t rows, const Weight&, float* y);
  // y [rows, n / 2]
  void (*gated_linear)(const Context&, const float* x, std::int64_t rows, const Weight&,
                       Activation, float* y);
  void (*add_low_rank)(const Context&, const LowRankSum&);
  // x [rows, 2 width], y [rows, width]
  void (*gate)(const Context&, const float* x, std::int64_t rows, std::int64_t width, Activation,
               float* y);
  void (*embedding)(const Context&, const std::int32_t* ids, std::int64_t rows, const Weight&,
                    float* y);
  // `add` may be null; otherwise x += add first. In the next two, rows of x are `stride` apart.
  void (*rms_norm)(const Context&, float* x, const float* add, const float* gain, float eps,
                   std::int64_t rows, std::int64_t width, float* y);
  void (*head_norm)(const Context&, float* x, const float* gain, float eps, std::int64_t rows,
                    std::int64_t stride, std::int64_t heads, std::int64_t head);
  void (*rope)(const Context&, float* x, const float* table, const std::int32_t* positions,
               std::int64_t rows, std::int64_t stride, std::int64_t heads, std::int64_t head,
               std::int64_t half, bool paired);
  void (*softcap)(const Context&, float* x, std::int64_t count, float cap);
  void (*attention)(const Context&, const Attention&);
  void (*sample)(const Context&, const Sample&);
  void (*log_probabilities)(const Context&, const LogProbabilities&);
  // Products of the int8 inner loop on `threads` threads for about `seconds`: operations a second.
  double (*int8_rate)(const Context&, double seconds);
  double (*read_rate)(const Context&, const std::byte* data, std::int64_t bytes);
};

// One set of kernels for each instruction set that was compiled, defined in operations.cc.
namespace avx512 {
extern const Operations operations;
}
namespace avx2 {
extern const Operations operations;
}
namespace portable {
extern const Operations operations;
}

}  // namespace mainspring
