// y = x @ matrix.T + bias, and the same with the halves of y joined by a gate.
#include "codes.h"
#include "gate.h"
#include "isa.h"
#include "quantize.h"
#include "rows.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

// Rows whose sums over one panel stay in the first-level cache beside a group of weights.
constexpr int kRows = 48;
// Up to so many rows wait for memory, and reading a matrix from its begin to its end is fastest.
constexpr int kStreamed = 8;
// How far before its use a weight is fetched that one tile uses, in bytes; tiles that go over a
// group again and again fetch the group after the next.
constexpr std::int64_t kNear = 4096;
constexpr std::int64_t kStride = kPanel * 4;  // bytes of weights a step, in every format

// x in the form of the inner loop: [group][row][kGroup], so that a tile reads one piece of memory.
template <class Element>
struct Rows {
  Element* values;
  float* scales;          // [group][row], quantized formats only
  std::int32_t* offsets;  // [group][row]: -128 * the sum of the integers
  std::int32_t* totals;   // [group][row][kParts]: sums of 32 integers; null: not wanted
  std::int64_t count;
};

template <class F>
void prepare_group(const float* x, int count, std::int64_t at,
                   const Rows<typename F::Element>& to) {
  alignas(64) float padded[kGroup];
  if (count < kGroup) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, x, sizeof(float) * unsigned(count));
    x = padded;
  }
  typename F::Element* values = to.values + at * kGroup;
  if constexpr (F::width < 4) {
    for (int i = 0; i < kGroup; i += lanes) F::put(values + i, load(x + i));
  } else {
    const Scale scale = scale_of(x, kGroup, 127.0f);
    Int total{};
    for (int part = 0; part < kParts; ++part) {
      Int of_part{};
      for (int i = part * kSubgroup; i < (part + 1) * kSubgroup; i += lanes) {
        const Int integers = quantized(load(x + i), scale, 127);
        of_part += integers;
        F::put(values + i, integers);
      }
      total += of_part;
      if (to.totals != nullptr) to.totals[at * kParts + part] = sum(of_part);
    }
    to.scales[at] = scale.step;
    to.offsets[at] = -128 * sum(total);
  }
}

template <class F>
void prepare(const Context& context, const float* x, const Weight& weight,
             const Rows<typename F::Element>& to) {
  const std::int64_t groups = weight.groups();
  // A handful of rows costs less than waking the workers.
  const std::int64_t piece = to.count * weight.k < 32768 ? to.count : 4;
  parallel(context.pool, (to.count + piece - 1) / piece, [&](std::int64_t part, int) {
    const std::int64_t end = (part + 1) * piece < to.count ? (part + 1) * piece : to.count;
    for (std::int64_t row = part * piece; row < end; ++row) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t left = weight.k - g * kGroup;
        prepare_group<F>(x + row * weight.k + g * kGroup, int(left < kGroup ? left : kGroup),
                         g * to.count + row, to);
      }
    }
  });
}

// Rows and the memory they lie in.
template <class F>
struct Prepared {
  Prepared(const Context& context, const float* x, std::int64_t rows, const Weight& weight)
      : values(context.arena, rows * weight.groups() * kGroup),
        scales(context.arena, rows * weight.groups()),
        offsets(context.arena, rows * weight.groups()),
        totals(context.arena, weight.coded() ? rows * weight.groups() * kParts : 0),
        view{values.data(), scales.data(), offsets.data(),
             weight.coded() ? totals.data() : nullptr, rows} {
    prepare<F>(context, x, weight, view);
  }

  Scratch<typename F::Element> values;
  Scratch<float> scales;
  Scratch<std::int32_t> offsets;
  Scratch<std::int32_t> totals;
  Rows<typename F::Element> view;
};

// Columns of a panel that a matrix of n has.
inline int panel_width(std::int64_t n, std::int64_t panel) {
  const std::int64_t left = n - panel * kPanel;
  return int(left < kPanel ? left : kPanel);
}

// sums += integers * (scale of the column * scale of the row): the one place where integers of a
// group become floats, so that every way to get the integers gives the same bits.
template <int rows>
inline void add_scaled(const Int (&t)[rows][tile_vecs], const float* x_scales,
                       const float* w_scales, float* sums) {
  Float columns[tile_vecs];
  MAINSPRING_UNROLL
  for (int v = 0; v < tile_vecs; ++v) columns[v] = load(w_scales + v * lanes);
  MAINSPRING_UNROLL
  for (int r = 0; r < rows; ++r) {
    const Float row = broadcast(x_scales[r]);
    MAINSPRING_UNROLL
    for (int v = 0; v < tile_vecs; ++v) {
      float* sum = sums + r * kPanel + v * lanes;
      store(sum, fma(to_float(t[r][v]), columns[v] * row, load(sum)));
    }
  }
}

// One group's contribution to the sums [rows][kPanel] of a tile.
template <class F, int rows>
void tile(const typename F::Element* x, const std::byte* w, int steps, const float* x_scales,
          const std::int32_t* x_offsets, const float* w_scales, float* sums, Ahead& ahead) {
  constexpr int vecs = tile_vecs;
  for (int column = 0; column < kPanel; column += vecs * lanes) {
    const std::byte* low = w + column * 4;
    const Columns columns{low, low + (vecs / 2) * lanes * 4, kStride};
    // From zero, which costs nothing: to begin with the sums or the offsets holds the products up.
    typename F::Accumulator t[rows][vecs] = {};
    ahead = multiply<F, rows, vecs>(x, kGroup, columns, steps, t, ahead);
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      MAINSPRING_UNROLL
      for (int v = 0; v < vecs; ++v) {
        if constexpr (F::width < 4) {
          float* sum = sums + r * kPanel + column + v * lanes;
          store(sum, load(sum) + t[r][v]);
        } else {
          t[r][v] += x_offsets[r];
        }
      }
    }
    if constexpr (F::width == 4) add_scaled<rows>(t, x_scales, w_scales + column, sums + column);
  }
}

// A group of int4 weights as int8 weights, value * m + 128 = nibble * m + (128 - 8 m), computed in
// bytes modulo 256.
void widen(const std::byte* group, int depth, std::byte* out) {
  using Words = std::uint32_t __attribute__((vector_size(sizeof(Int))));
  using Shorts = std::uint16_t __attribute__((vector_size(sizeof(Int))));
  using Bytes = std::uint8_t __attribute__((vector_size(sizeof(Int))));
  const auto* multipliers = reinterpret_cast<const std::int8_t*>(group + depth * kPanel / 2);
  for (int sub = 0; sub < depth / kSubgroup; ++sub) {
    for (int column = 0; column < kPanel; column += lanes) {
      // For the four bytes of a lane at once: the even bytes as 16-bit products, the odd ones as
      // products of byte * 256.
      const Int m = widened(multipliers + sub * kPanel + column);
      const Shorts factor = bits_as<Shorts>((m & 0xffff) | (m << 16));
      const Words constant = bits_as<Words>(128 - 8 * m) & 0xff;
      const Bytes offset = bits_as<Bytes>(constant * 0x01010101u);
      const std::byte* from = group + (sub * 4 * kPanel + column) * 4;
      std::byte* to = out + (sub * 8 * kPanel + column) * 4;
      for (int step = 0; step < 4; ++step) {
        const Int packed = load(reinterpret_cast<const std::int32_t*>(from + step * kStride));
        for (int half = 0; half < 2; ++half) {
          const Int nibbles = half == 0 ? packed : packed >> 4;
          const Shorts even = bits_as<Shorts>(nibbles & 0x000f000f) * factor;
          const Shorts odd = bits_as<Shorts>(nibbles & 0x0f000f00) * factor;
          const Int product = (bits_as<Int>(even) & 0x00ff00ff) | bits_as<Int>(odd);
          store(reinterpret_cast<std::int32_t*>(to + (2 * step + half) * kStride),
                bits_as<Int>(bits_as<Bytes>(product) + offset));
        }
      }
    }
  }
}

// The same for few rows of int4, straight from the packed halves of bytes. Integers, so the
// sums are the same.
template <int rows>
void narrow_tile(const Int8::Element* x, const std::byte* group, int depth, const float* x_scales,
                 const float* w_scales, float* sums, Ahead ahead) {
  const auto* multipliers = reinterpret_cast<const std::int8_t*>(group + depth * kPanel / 2);
  constexpr int vecs = tile_vecs;
  for (int column = 0; column < kPanel; column += vecs * lanes) {
    Int t[rows][vecs] = {};
    for (int sub = 0; sub < depth / kSubgroup; ++sub) {
      Int products[rows][vecs] = {}, eights[rows] = {};
      const std::byte* w = group + (sub * 4 * kPanel + column) * 4;
      const Int8::Element* from = x + sub * kSubgroup;
      for (int step = 0; step < 4; ++step, w += kStride, from += 8) {
        ahead.step();
        Int8::Activation low[rows], high[rows];
        for (int r = 0; r < rows; ++r) {
          low[r] = Int8::activation(from + r * kGroup);
          high[r] = Int8::activation(from + r * kGroup + 4);
          eights[r] = Int8::dot(low[r], Int8::split(broadcast(0x08080808)), eights[r]);
          eights[r] = Int8::dot(high[r], Int8::split(broadcast(0x08080808)), eights[r]);
        }
        MAINSPRING_UNROLL
        for (int v = 0; v < vecs; ++v) {
          const Int packed = load(reinterpret_cast<const std::int32_t*>(w) + v * lanes);
          const auto lower = Int8::split(packed & 0x0f0f0f0f);
          const auto upper = Int8::split((packed >> 4) & 0x0f0f0f0f);
          MAINSPRING_UNROLL
          for (int r = 0; r < rows; ++r) {
            products[r][v] = Int8::dot(low[r], lower, products[r][v]);
            products[r][v] = Int8::dot(high[r], upper, products[r][v]);
          }
        }
      }
      for (int v = 0; v < vecs; ++v) {
        const Int m = widened(multipliers + sub * kPanel + column + v * lanes);
        for (int r = 0; r < rows; ++r) t[r][v] += (products[r][v] - eights[r]) * m;
      }
    }
    add_scaled<rows>(t, x_scales, w_scales + column, sums + column);
  }
}

// The sums of `rows` rows from `first` on over the columns of a panel, with their bias:
// sums [rows][kPanel].
template <class F>
void panel_sums(const Rows<typename F::Element>& x, const Weight& weight, std::int64_t panel,
                std::int64_t first, int rows, float* sums) {
  alignas(64) std::byte wide[kGroup * kPanel];
  const std::int64_t whole = Weight::group_bytes(weight.format, kGroup);
  const int tiles = (rows + tile_rows - 1) / tile_rows;
  const int passes = tiles * (kPanel / (tile_vecs * lanes));
  std::memset(sums, 0, sizeof(float) * unsigned(rows) * kPanel);
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    const int depth = weight.depth(g);
    const std::byte* group = weight.group(panel, g);
    const auto* w_scales = reinterpret_cast<const float*>(
        group + Weight::group_bytes(weight.format, depth) - 4 * kPanel);
    const std::byte* w = group;
    const std::int64_t at = g * x.count + first;
    const std::byte* soon = group + (tiles == 1 ? kNear : 2 * whole);
    if constexpr (F::width == 4) {
      if (weight.coded()) {
        add_coded_group({x.values + at * kGroup, x.scales + at, x.totals + at * kParts}, rows,
                        weight.format, group, depth, soon, sums);
        continue;
      }
      if (weight.format == Format::int4 && rows <= narrow_rows) {
        with_rows(rows, [&]<int height>() {
          if constexpr (height <= narrow_rows) {
            narrow_tile<height>(x.values + at * kGroup, w, depth, x.scales + at, w_scales, sums,
                                Ahead(soon, soon + whole, passes * depth / 8));
          }
        });
        continue;
      }
      if (weight.format == Format::int4) {
        widen(w, depth, wide);
        w = wide;
      }
    }
    Ahead ahead(soon, soon + whole, passes * depth / F::width);
    for_tiles(rows, [&](int row, int count) {
      with_rows(count, [&]<int height>() {
        tile<F, height>(x.values + (at + row) * kGroup, w, depth / F::width, x.scales + at + row,
                        x.offsets + at + row, w_scales, sums + row * kPanel, ahead);
      });
    });
  }
  if (const float* bias = weight.bias.as<float>()) {
    const int width = panel_width(weight.n, panel);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < width; ++i) sums[r * kPanel + i] += bias[panel * kPanel + i];
    }
  }
}

// Calls body(panel, first, rows) for pieces of the product x of `rows` rows by the first `panels`
// panels of a matrix, each piece once, on all threads.
template <class Body>
void each_piece(const Context& context, std::int64_t rows, std::int64_t panels, const Body& body) {
  const std::int64_t pieces = (rows + kRows - 1) / kRows;
  const auto piece = [&](std::int64_t panel, std::int64_t index) {
    // Of nearly equal height: a few rows that are left over would cost as much as many.
    const std::int64_t first = index * rows / pieces, end = (index + 1) * rows / pieces;
    body(panel, first, int(end - first));
  };
  const int threads = context.pool.threads();
  if (panels >= 2 * threads) {
    // Neighbouring panels to one thread, so that what it fetches ahead is its own; all rows pass
    // while a panel is in its second-level cache.
    const std::int64_t run = panels / (4 * threads) > 0 ? panels / (4 * threads) : 1;
    parallel(context.pool, (panels + run - 1) / run, [&](std::int64_t part, int) {
      const std::int64_t end = (part + 1) * run < panels ? (part + 1) * run : panels;
      for (std::int64_t panel = part * run; panel < end; ++panel) {
        for (std::int64_t index = 0; index < pieces; ++index) piece(panel, index);
      }
    });
  } else {
    parallel(context.pool, panels * pieces,
             [&](std::int64_t part, int) { piece(part / pieces, part % pieces); });
  }
}

template <class F>
void product(const Context& context, const float* x, std::int64_t rows, const Weight& weight,
             float* y) {
  const Prepared<F> prepared(context, x, rows, weight);
  each_piece(context, rows, weight.panels(), [&](std::int64_t panel, std::int64_t first, int count) {
    alignas(64) float sums[kRows * kPanel];
    panel_sums<F>(prepared.view, weight, panel, first, count, sums);
    const unsigned width = unsigned(panel_width(weight.n, panel));
    for (int r = 0; r < count; ++r) {
      std::memcpy(y + (first + r) * weight.n + panel * kPanel, sums + r * kPanel,
                  sizeof(float) * width);
    }
  });
}

// The halves of a product meet while both are in the first-level cache: a prompt's [rows, 2 width]
// would not even stay in the last level. Needs halves of whole panels.
template <class F, class Function>
void gated_product(const Context& context, const float* x, std::int64_t rows, const Weight& weight,
                   const Function& function, float* y) {
  const Prepared<F> prepared(context, x, rows, weight);
  const std::int64_t panels = weight.panels() / 2;
  each_piece(context, rows, panels, [&](std::int64_t panel, std::int64_t first, int count) {
    alignas(64) float gate[kRows * kPanel], up[kRows * kPanel];
    panel_sums<F>(prepared.view, weight, panel, first, count, gate);
    panel_sums<F>(prepared.view, weight, panels + panel, first, count, up);
    for (int r = 0; r < count; ++r) {
      gate_row(gate + r * kPanel, up + r * kPanel, kPanel,
               y + (first + r) * weight.n / 2 + panel * kPanel, function);
    }
  });
}

template <class F>
void gated_by_format(const Context& context, const float* x, std::int64_t rows,
                     const Weight& weight, Activation activation, float* y) {
  with_function(activation, [&](const auto& function) {
    const std::int64_t width = weight.n / 2;
    if (width % kPanel == 0 && rows > kStreamed) {
      gated_product<F>(context, x, rows, weight, function, y);
      return;
    }
    const Scratch<float> both(context.arena, rows * weight.n);
    product<F>(context, x, rows, weight, both.data());
    each_row(context, rows, 4 * width, [&](std::int64_t row) {
      const float* gate = both.data() + row * weight.n;
      gate_row(gate, gate + width, width, y + row * width, function);
    });
  });
}

}  // namespace

void linear(const Context& context, const float* x, std::int64_t rows, const Weight& weight,
            float* y) {
  if (rows == 0) return;
  switch (weight.format) {
    case Format::float32: return product<Float32>(context, x, rows, weight, y);
    case Format::bf16: return product<BFloat16>(context, x, rows, weight, y);
    case Format::int8:
    case Format::int4:
    case Format::q8:
    case Format::q4: return product<Int8>(context, x, rows, weight, y);
  }
}

void gated_linear(const Context& context, const float* x, std::int64_t rows, const Weight& weight,
                  Activation activation, float* y) {
  if (rows == 0) return;
  switch (weight.format) {
    case Format::float32:
      return gated_by_format<Float32>(context, x, rows, weight, activation, y);
    case Format::bf16: return gated_by_format<BFloat16>(context, x, rows, weight, activation, y);
    case Format::int8:
    case Format::int4:
    case Format::q8:
    case Format::q4: return gated_by_format<Int8>(context, x, rows, weight, activation, y);
  }
}

}  // namespace mainspring::MAINSPRING_ISA
