// The inner loops of the formats q8 and q4: integers that share a scale, and in q4 also a minimum,
// with 31 neighbours. value = code * scale + minimum, so a row of x adds, for each 32 of k,
//   scale of x * (scale * sum(integers of x * codes) + minimum * sum(integers of x)).
#pragma once

#include "operations.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

inline constexpr int kParts = kGroup / kSubgroup;       // of a whole group, each with its scale
inline constexpr std::int64_t kStep = kPanel * 4;       // bytes of weights a step
inline constexpr std::int64_t kPart = kSubgroup * kPanel;  // bytes of 32 k, one a code

// A group of quantized rows, as linear.cc prepares them.
struct CodedRows {
  const Int8::Element* values;  // [row][kGroup]
  const float* scales;          // [row]
  const std::int32_t* totals;   // [row][kParts]: sums of 32 integers
};

// The sums of one part become floats. `mins` is null in q8, whose codes are 128 too large: the sums
// of x take that back.
template <int rows>
inline void add_part(const Int (&t)[rows][tile_vecs], const CodedRows& x, int part,
                     const float* scales, const float* mins, float* sums) {
  MAINSPRING_UNROLL
  for (int r = 0; r < rows; ++r) {
    const std::int32_t total = x.totals[r * kParts + part];
    const Float row = broadcast(x.scales[r]), row_total = row * broadcast(float(total));
    MAINSPRING_UNROLL
    for (int v = 0; v < tile_vecs; ++v) {
      float* sum = sums + r * kPanel + v * lanes;
      const Float scale = load(scales + v * lanes) * row;
      if (mins == nullptr) {
        store(sum, fma(to_float(t[r][v] - 128 * total), scale, load(sum)));
      } else {
        const Float to = fma(to_float(t[r][v]), scale, load(sum));
        store(sum, fma(load(mins + v * lanes), row_total, to));
      }
    }
  }
}

// One group's contribution to the sums [rows][kPanel], from codes of a byte each.
template <int rows>
void coded_tile(const CodedRows& x, const std::byte* w, int parts, const float* scales,
                const float* mins, float* sums, Ahead& ahead) {
  constexpr int vecs = tile_vecs;
  for (int column = 0; column < kPanel; column += vecs * lanes) {
    for (int part = 0; part < parts; ++part) {
      const std::byte* low = w + part * kPart + column * 4;
      const Columns columns{low, low + (vecs / 2) * lanes * 4, kStep};
      Int t[rows][vecs] = {};
      ahead = multiply<Int8, rows, vecs>(x.values + part * kSubgroup, kGroup, columns,
                                         kSubgroup / 4, t, ahead);
      const int at = part * kPanel + column;
      add_part<rows>(t, x, part, scales + at, mins == nullptr ? nullptr : mins + at,
                     sums + column);
    }
  }
}

// The same for q4, straight from the packed halves of bytes. Integers, so the sums are the same.
template <int rows>
void packed_tile(const CodedRows& x, const std::byte* group, int parts, const float* scales,
                 const float* mins, float* sums, Ahead ahead) {
  constexpr int vecs = tile_vecs;
  for (int column = 0; column < kPanel; column += vecs * lanes) {
    const std::byte* w = group + column * 4;
    for (int part = 0; part < parts; ++part) {
      Int t[rows][vecs] = {};
      const Int8::Element* from = x.values + part * kSubgroup;
      for (int step = 0; step < kSubgroup / 8; ++step, w += kStep, from += 8) {
        ahead.step();
        MAINSPRING_UNROLL
        for (int half = 0; half < 2; ++half) {
          Int8::Weights codes[vecs];
          MAINSPRING_UNROLL
          for (int v = 0; v < vecs; ++v) {
            const Int packed = load(reinterpret_cast<const std::int32_t*>(w) + v * lanes);
            codes[v] = Int8::split((half == 0 ? packed : packed >> 4) & 0x0f0f0f0f);
          }
          MAINSPRING_UNROLL
          for (int r = 0; r < rows; ++r) {
            const auto activation = Int8::activation(from + r * kGroup + 4 * half);
            MAINSPRING_UNROLL
            for (int v = 0; v < vecs; ++v) t[r][v] = Int8::dot(activation, codes[v], t[r][v]);
          }
        }
      }
      const int at = part * kPanel + column;
      add_part<rows>(t, x, part, scales + at, mins + at, sums + column);
    }
  }
}

// The packed codes of a group of q4 as bytes.
inline void spread(const std::byte* group, int depth, std::byte* out) {
  for (int step = 0; step < depth / 8; ++step) {
    for (int column = 0; column < kPanel; column += lanes, group += sizeof(Int)) {
      const Int packed = load(reinterpret_cast<const std::int32_t*>(group));
      auto* to = reinterpret_cast<std::int32_t*>(out + 2 * step * kStep) + column;
      store(to, packed & 0x0f0f0f0f);
      store(to + kPanel, (packed >> 4) & 0x0f0f0f0f);
    }
  }
}

// One group's contribution to the sums of `rows` rows, while what lies from `soon` on is fetched.
inline void add_coded_group(const CodedRows& x, int rows, Format format, const std::byte* group,
                            int depth, const std::byte* soon, float* sums) {
  const bool packed = format == Format::q4;
  const int parts = depth / kSubgroup;
  const auto* scales =
      reinterpret_cast<const float*>(group + std::int64_t{depth} * kPanel / (packed ? 2 : 1));
  const float* mins = packed ? scales + parts * kPanel : nullptr;
  const std::byte* end = soon + Weight::group_bytes(format, kGroup);
  constexpr int passes = kPanel / (tile_vecs * lanes);
  if (packed && rows <= tile_rows) {
    with_rows(rows, [&]<int height>() {
      packed_tile<height>(x, group, parts, scales, mins, sums,
                          Ahead(soon, end, passes * depth / 8));
    });
    return;
  }
  alignas(64) std::byte wide[kGroup * kPanel];
  if (packed) spread(group, depth, wide);
  const int tiles = (rows + tile_rows - 1) / tile_rows;
  Ahead ahead(soon, end, tiles * passes * depth / 4);
  for_tiles(rows, [&](int row, int count) {
    const CodedRows part{x.values + row * kGroup, x.scales + row, x.totals + row * kParts};
    with_rows(count, [&]<int height>() {
      coded_tile<height>(part, packed ? wide : group, parts, scales, mins, sums + row * kPanel,
                         ahead);
    });
  });
}

}  // namespace mainspring::MAINSPRING_ISA
