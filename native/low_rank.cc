// Products with matrices of low rank, added to rows of another product.
#include "isa.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

constexpr int kTile = 4;        // rows that share what is read of a matrix
constexpr int kChains = 4;      // sums over k side by side, of i = 0, 1, 2, 3 mod 4
constexpr int kVectors = 4;     // of columns side by side
constexpr std::int64_t kColumns = 1024;  // of `up` in a part; a multiple of kVectors * lanes

inline Float values(const float* p) { return load(p); }

inline Float values(const std::uint16_t* p) {
  using Halves = std::uint16_t __attribute__((vector_size(2 * lanes)));
  Halves bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits_as<Float>(__builtin_convertvector(bits, Int) << 16);
}

// Up to kTile rows of one use.
struct Tile {
  const LowRankUse* use;
  std::int64_t first;
  int rows;
};

// sums [Rows][matrix.wide()] = x down. A row's sums are added in an order that knows that row only.
template <class T, int Rows>
void reduce(const float* const* x, const LowRank& matrix, float* sums) {
  const T* down = matrix.down.as<T>();
  const std::int64_t wide = matrix.wide();
  for (std::int64_t v = 0; v < wide; v += lanes) {
    Float chains[Rows][kChains] = {};
    std::int64_t i = 0;
    for (; i + kChains <= matrix.k; i += kChains) {
      MAINSPRING_UNROLL for (int c = 0; c < kChains; ++c) {
        const Float column = values(down + (i + c) * wide + v);
        MAINSPRING_UNROLL for (int r = 0; r < Rows; ++r) {
          chains[r][c] = fma(broadcast(x[r][i + c]), column, chains[r][c]);
        }
      }
    }
    for (; i < matrix.k; ++i) {
      const Float column = values(down + i * wide + v);
      for (int r = 0; r < Rows; ++r) {
        chains[r][0] = fma(broadcast(x[r][i]), column, chains[r][0]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      store(sums + r * wide + v, (chains[r][0] + chains[r][1]) + (chains[r][2] + chains[r][3]));
    }
  }
}

// y[row][begin..end) += sums up.
template <class T, int Rows>
void expand(const float* sums, const LowRank& matrix, std::int64_t begin, std::int64_t end,
            float* const* y) {
  const T* up = matrix.up.as<T>();
  const std::int64_t wide = matrix.wide();
  for (std::int64_t v = begin; v < end; v += kVectors * lanes) {
    const T* panel = up + v / kPanel * kPanel * matrix.r + v % kPanel;
    Float totals[Rows][kVectors] = {};
    for (std::int64_t i = 0; i < matrix.r; ++i) {
      MAINSPRING_UNROLL for (int c = 0; c < kVectors; ++c) {
        const Float column = values(panel + i * kPanel + c * lanes);
        MAINSPRING_UNROLL for (int r = 0; r < Rows; ++r) {
          totals[r][c] = fma(broadcast(sums[r * wide + i]), column, totals[r][c]);
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < kVectors; ++c) {
        float* at = y[r] + v + c * lanes;
        const std::int64_t left = end - v - c * lanes;
        if (left >= lanes) {
          store(at, load(at) + totals[r][c]);
        } else if (left > 0) {
          store_part(at, load_part(at, int(left)) + totals[r][c], int(left));
        }
      }
    }
  }
}

// body(first, number of rows) with a number known to the compiler: kTile or 1.
template <class Body>
void by_rows(int rows, const Body& body) {
  if (rows == kTile) return body.template operator()<kTile>(0);
  for (int r = 0; r < rows; ++r) body.template operator()<1>(r);
}

// body(a pointer to the matrix's numbers)
template <class Body>
void by_format(const LowRank& matrix, const Body& body) {
  if (matrix.format == Format::bf16) {
    body.template operator()<std::uint16_t>();
  } else {
    body.template operator()<float>();
  }
}

std::int64_t tiles_of(const LowRankUse& use) { return (use.count + kTile - 1) / kTile; }

}  // namespace

void add_low_rank(const Context& context, const LowRankSum& s) {
  std::int64_t count = 0, wide = 0, chunks = 1;
  for (std::int64_t u = 0; u < s.count; ++u) {
    const LowRank& matrix = *s.uses[u].matrix;
    count += tiles_of(s.uses[u]);
    if (matrix.wide() > wide) wide = matrix.wide();
    const std::int64_t parts = (matrix.n + kColumns - 1) / kColumns;
    if (parts > chunks) chunks = parts;
  }
  if (count == 0) return;
  const Scratch<Tile> tiles(context.arena, count);
  Tile* tile = tiles.data();
  for (std::int64_t u = 0; u < s.count; ++u) {
    const LowRankUse& use = s.uses[u];
    for (std::int64_t first = 0; first < use.count; first += kTile) {
      const std::int64_t left = use.count - first;
      *tile++ = {&use, first, left < kTile ? int(left) : kTile};
    }
  }
  const Scratch<float> sums(context.arena, count * kTile * wide);
  parallel(context.pool, count, [&](std::int64_t part, int) {
    const Tile& t = tiles.data()[part];
    const LowRank& matrix = *t.use->matrix;
    const float* x[kTile];
    for (int r = 0; r < t.rows; ++r) x[r] = s.x + t.use->rows[t.first + r] * s.k;
    float* out = sums.data() + part * kTile * wide;
    by_format(matrix, [&]<class T>() {
      by_rows(t.rows, [&]<int Rows>(int r) {
        reduce<T, Rows>(x + r, matrix, out + r * matrix.wide());
      });
    });
  });
  parallel(context.pool, count * chunks, [&](std::int64_t part, int) {
    const Tile& t = tiles.data()[part / chunks];
    const LowRank& matrix = *t.use->matrix;
    const std::int64_t begin = part % chunks * kColumns;
    const std::int64_t end = begin + kColumns < matrix.n ? begin + kColumns : matrix.n;
    float* y[kTile];
    for (int r = 0; r < t.rows; ++r) {
      y[r] = s.y + t.use->rows[t.first + r] * s.n + t.use->first;
    }
    const float* from = sums.data() + part / chunks * kTile * wide;
    by_format(matrix, [&]<class T>() {
      by_rows(t.rows, [&]<int Rows>(int r) {
        expand<T, Rows>(from + r * matrix.wide(), matrix, begin, end, y + r);
      });
    });
  });
}

}  // namespace mainspring::MAINSPRING_ISA
