// Paged causal attention with an online softmax.
//
// Positions are walked in steps of 64 tokens (two cache blocks, aligned to 64). What a step does to
// a query depends on the query's own position only, never on the other rows of its tile: a prompt
// gives the same bits in one piece and in many.
#include <new>

#include "isa.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

constexpr int kStep = 2 * kBlock;
constexpr int kQueries = 64;     // query vectors (rows x heads that share a KV head) of a work item
constexpr int kMaxHead = 256;
constexpr float kNothing = -__builtin_inff();

// Rows first .. first + rows - 1 of one sequence, for one KV head.
struct Item {
  std::int64_t sequence;
  std::int64_t first;
  int rows;
  std::int64_t kv_head;
};

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

// Keys and values of one row and head into their block.
void keep(const Attention& a, std::int64_t sequence, std::int64_t row, std::int64_t kv_head) {
  const Layout layout(a);
  const std::int64_t position = position_of(a, sequence, row);
  const std::int64_t block = block_of(a, sequence, position / kBlock), at = position % kBlock;
  const float* key = a.qkv + row * layout.width + (a.heads + kv_head) * layout.head;
  const float* value = key + a.cache.heads * layout.head;
  std::byte* keys = a.cache.keys(a.layer, block, kv_head);
  std::byte* values = a.cache.values(a.layer, block, kv_head);
  const std::int64_t wide = a.cache.wide();
  if (a.cache.bf16) {
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
void clear_rest(const Attention& a, std::int64_t sequence, std::int64_t kv_head) {
  const std::int64_t end = a.lengths[sequence];
  const std::int64_t fresh = end - (a.starts[sequence + 1] - a.starts[sequence]);
  const std::int64_t begin = (end - 1) / kBlock * kBlock;
  if (end % kBlock == 0 || begin < fresh) return;
  std::byte* values = a.cache.values(a.layer, block_of(a, sequence, begin / kBlock), kv_head);
  const std::int64_t wide = a.cache.wide();
  for (std::int64_t at = end % kBlock; at < kBlock; ++at) {
    if (a.cache.bf16) {
      auto* v = reinterpret_cast<std::uint16_t*>(values) + at / 2 * wide * 2 + at % 2;
      for (std::int64_t i = 0; i < wide; ++i) v[i * 2] = 0;
    } else {
      std::memset(reinterpret_cast<float*>(values) + at * wide, 0,
                  sizeof(float) * std::size_t(wide));
    }
  }
}

void keep_all(const Context& context, const Attention& a) {
  const std::int64_t rows = a.starts[a.sequences];
  const std::int64_t piece = rows < 128 ? rows : 32;
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

// The query vectors of a work item and what they have seen so far.
template <class F>
struct Queries {
  alignas(64) typename F::Element q[kQueries * kMaxHead];  // [query][head]
  alignas(64) float out[kQueries * kMaxHead];              // [query][wide]
  float peak[kQueries];                                    // largest score
  float total[kQueries];                                   // sum of 2^(score - peak)
};

// Queries of a register tile in one step.
template <class F>
struct Scores {
  alignas(64) float score[tile_rows * kStep];
  alignas(64) typename F::Element weight[tile_rows * kStep];
  float fade[tile_rows];  // what the earlier steps' output is multiplied by
};

template <class F>
void load_queries(const Attention& a, const Item& item, const Layout& layout, Queries<F>& to) {
  const int count = item.rows * layout.group;
  for (int i = 0; i < count; ++i) {
    const float* q = a.qkv + (item.first + i / layout.group) * layout.width +
                     (item.kv_head * layout.group + i % layout.group) * layout.head;
    typename F::Element* into = to.q + i * kMaxHead;
    std::int64_t j = 0;
    for (; j + lanes <= layout.head; j += lanes) F::put(into + j, load(q + j));
    if (j < layout.head) {
      typename F::Element rest[lanes];
      F::put(rest, load_part(q + j, int(layout.head - j)));
      std::memcpy(into + j, rest, sizeof(rest[0]) * std::size_t(layout.head - j));
    }
    to.peak[i] = kNothing;
    to.total[i] = 0.0f;
  }
  std::memset(to.out, 0, sizeof(float) * kMaxHead * unsigned(count));
}

// score[r][0..63] = query r . key
template <class F, int rows>
void score(const typename F::Element* q, const std::byte* low, const std::byte* high,
           std::int64_t head, float* scores) {
  constexpr int half = tile_vecs / 2;
  constexpr std::int64_t stride = kBlock * 4;
  for (int column = 0; column < kBlock; column += half * lanes) {
    Float t[rows][tile_vecs] = {};
    multiply<F, rows, tile_vecs>(q, kMaxHead, {low + column * 4, high + column * 4, stride},
                                 int(head) / F::width, t);
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      MAINSPRING_UNROLL
      for (int v = 0; v < half; ++v) {
        store(scores + r * kStep + column + v * lanes, t[r][v]);
        store(scores + r * kStep + kBlock + column + v * lanes, t[r][half + v]);
      }
    }
  }
}

// The tokens of a step that a query sees: [from, to).
struct Span {
  int from, to;
};

inline Span seen_by(const Attention& a, const Item& item, const Layout& layout, int query,
                    std::int64_t base) {
  const std::int64_t position =
      position_of(a, item.sequence, item.first + query / layout.group) - base;
  const std::int64_t oldest = a.window > 0 ? position - a.window + 1 : 0;
  return {oldest > 0 ? int(oldest) : 0, position + 1 < kStep ? int(position + 1) : kStep};
}

// Scales, caps and masks the scores of one query in place, as powers of two instead of e; returns
// the largest.
inline float finish_scores(const Attention& a, Span span, float* score) {
  constexpr float log2_e = 1.44269504f;
  const Float scale = broadcast(a.scale * log2_e);
  Float most = broadcast(kNothing);
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    Float s = load(score + i) * scale;
    if (a.softcap > 0.0f) {
      const Float cap = broadcast(a.softcap * log2_e);
      s = cap * tanh(s / cap);
    }
    if (span.from > i || span.to < i + lanes) {
      const Int token = iota() + i;
      s = select((token >= span.from) & (token < span.to), s, broadcast(kNothing));
    }
    store(score + i, s);
    most = max(s, most);
  }
  return largest(most);
}

// Finished scores become weights, relative to the largest score so far; returns their sum.
template <class F>
inline float weigh(const float* score, float peak, typename F::Element* weight) {
  Float sums{};
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    const Float p = exp2(load(score + i) - broadcast(peak));
    sums += p;
    F::put(weight + i, p);
  }
  return sum(sums);
}

// One step of the online softmax for the queries of a register tile.
template <class F, int rows>
void soften(const Attention& a, const Item& item, const Layout& layout, std::int64_t base,
            int first, Scores<F>& scores, Queries<F>& queries) {
  float* peaks = queries.peak + first;
  alignas(64) float fades[(tile_rows + lanes - 1) / lanes * lanes] = {};
  for (int r = 0; r < rows; ++r) {
    const Span span = seen_by(a, item, layout, first + r, base);
    const float highest = finish_scores(a, span, scores.score + r * kStep);
    const float next = highest > peaks[r] ? highest : peaks[r];
    fades[r] = peaks[r] - next;
    peaks[r] = next;
  }
  for (int i = 0; i < rows; i += lanes) store(fades + i, exp2(load(fades + i)));
  for (int r = 0; r < rows; ++r) {
    scores.fade[r] = fades[r];
    const float fresh = weigh<F>(scores.score + r * kStep, peaks[r], scores.weight + r * kStep);
    queries.total[first + r] = queries.total[first + r] * fades[r] + fresh;
  }
}

// out[r] = out[r] * fade[r] + weights . values, for `vecs` vectors of the head from `column` on.
template <class F, int rows, int vecs>
void gather(const Scores<F>& scores, const std::byte* low, const std::byte* high,
            std::int64_t wide, std::int64_t column, float* out) {
  const std::int64_t stride = wide * 4;
  constexpr std::int64_t upper = (vecs + 1) / 2 * lanes * 4;
  Float t[rows][vecs];
  MAINSPRING_UNROLL
  for (int r = 0; r < rows; ++r) {
    MAINSPRING_UNROLL
    for (int v = 0; v < vecs; ++v) {
      t[r][v] = load(out + r * kMaxHead + column + v * lanes) * broadcast(scores.fade[r]);
    }
  }
  const std::byte* a = low + column * 4;
  const std::byte* b = high + column * 4;
  multiply<F, rows, vecs>(scores.weight, kStep, {a, a + upper, stride}, kBlock / F::width, t);
  multiply<F, rows, vecs>(scores.weight + kBlock, kStep, {b, b + upper, stride},
                          kBlock / F::width, t);
  MAINSPRING_UNROLL
  for (int r = 0; r < rows; ++r) {
    MAINSPRING_UNROLL
    for (int v = 0; v < vecs; ++v) store(out + r * kMaxHead + column + v * lanes, t[r][v]);
  }
}

// Where a step's keys and values are. A second block that the sequence does not have is never
// counted; the first stands in for it.
struct Step {
  std::int64_t base;
  const std::byte *low_keys, *high_keys, *low_values, *high_values;
};

inline Step step_at(const Attention& a, const Item& item, std::int64_t base) {
  const std::int64_t low = block_of(a, item.sequence, base / kBlock);
  const bool both = base + kBlock < a.lengths[item.sequence];
  const std::int64_t high = both ? block_of(a, item.sequence, base / kBlock + 1) : low;
  return {base, a.cache.keys(a.layer, low, item.kv_head), a.cache.keys(a.layer, high, item.kv_head),
          a.cache.values(a.layer, low, item.kv_head), a.cache.values(a.layer, high, item.kv_head)};
}

// Fetches a step's keys and values while the one before it is in use: the blocks of a sequence are
// scattered, so no hardware prefetcher finds them.
inline void fetch(const Attention& a, const Item& item, std::int64_t base) {
  for (std::int64_t index = base / kBlock; index < (base + kStep) / kBlock; ++index) {
    if (index * kBlock >= a.lengths[item.sequence]) return;
    const std::byte* slot =
        a.cache.keys(a.layer, block_of(a, item.sequence, index), item.kv_head);
    for (std::int64_t at = 0; at < a.cache.slot_bytes(); at += 64) __builtin_prefetch(slot + at);
  }
}

template <class F, int rows>
void attend_tile(const Attention& a, const Item& item, const Layout& layout, const Step& step,
                 int first, Queries<F>& queries) {
  Scores<F> scores;
  score<F, rows>(queries.q + first * kMaxHead, step.low_keys, step.high_keys, layout.head,
                 scores.score);
  soften<F, rows>(a, item, layout, step.base, first, scores, queries);
  const std::int64_t wide = a.cache.wide();
  std::int64_t column = 0;
  float* out = queries.out + first * kMaxHead;
  for (; column + tile_vecs * lanes <= wide; column += tile_vecs * lanes) {
    gather<F, rows, tile_vecs>(scores, step.low_values, step.high_values, wide, column, out);
  }
  for (; column < wide; column += 2 * lanes) {
    gather<F, rows, 2>(scores, step.low_values, step.high_values, wide, column, out);
  }
}

template <class F>
void attend(const Attention& a, const Item& item, const Layout& layout, Queries<F>& queries) {
  load_queries(a, item, layout, queries);
  const std::int64_t begin = position_of(a, item.sequence, item.first);
  const std::int64_t last = begin + item.rows - 1;
  const std::int64_t oldest = a.window > 0 && begin >= a.window ? begin - a.window + 1 : 0;
  for (std::int64_t base = oldest / kStep * kStep; base <= last; base += kStep) {
    // Rows that see something of this step; for the others it must not exist at all.
    const std::int64_t from = base > begin ? base - begin : 0;
    std::int64_t to = item.rows;
    if (a.window > 0 && base + kStep - 1 + a.window - begin < to) {
      to = base + kStep - 1 + a.window - begin;
    }
    const Step step = step_at(a, item, base);
    fetch(a, item, base + kStep);
    const int first = int(from) * layout.group;
    for_tiles(int(to - from) * layout.group, [&](int tile, int count) {
      with_rows(count, [&]<int rows>() {
        attend_tile<F, rows>(a, item, layout, step, first + tile, queries);
      });
    });
  }
  for (int i = 0; i < item.rows * layout.group; ++i) {
    float* out = a.out + (item.first + i / layout.group) * a.heads * layout.head +
                 (item.kv_head * layout.group + i % layout.group) * layout.head;
    const float* from = queries.out + i * kMaxHead;
    const float total = queries.total[i];
    for (std::int64_t j = 0; j < layout.head; ++j) out[j] = from[j] / total;
  }
}

// A KV head with more query heads than kQueries is not a shape that exists; module.cc refuses it.
template <class F>
void attend_all(const Context& context, const Attention& a) {
  const Layout layout(a);
  std::int64_t tiles = 0;
  for (std::int64_t s = 0; s < a.sequences; ++s) {
    tiles += (a.starts[s + 1] - a.starts[s] + layout.rows - 1) / layout.rows;
  }
  const Scratch<Item> items(context.arena, tiles);
  Item* item = items.data();
  for (std::int64_t s = 0; s < a.sequences; ++s) {
    for (std::int64_t row = a.starts[s]; row < a.starts[s + 1]; row += layout.rows) {
      const std::int64_t left = a.starts[s + 1] - row;
      *item++ = {s, row, int(left < layout.rows ? left : layout.rows), 0};
    }
  }
  const Scratch<Queries<F>> queries(context.arena, context.pool.threads());
  // The last rows of a prompt see the most, so they go first.
  parallel(context.pool, tiles * a.cache.heads, [&](std::int64_t part, int thread) {
    Item mine = items.data()[tiles - 1 - part / a.cache.heads];
    mine.kv_head = part % a.cache.heads;
    attend(a, mine, layout, queries.data()[thread]);
  });
}

}  // namespace

void attention(const Context& context, const Attention& a) {
  if (a.starts[a.sequences] == 0) return;
  keep_all(context, a);
  if (a.cache.bf16) {
    attend_all<BFloat16>(context, a);
  } else {
    attend_all<Float32>(context, a);
  }
}

}  // namespace mainspring::MAINSPRING_ISA
