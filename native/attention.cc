// Paged causal attention with an online softmax.
//
// Positions are walked in steps of 64 tokens (two cache blocks, aligned to 64). What a step does to
// a query depends on the query's own position only, never on the other rows of its tile: a prompt
// gives the same bits in one piece and in many.
#include <new>

#include "cache.h"
#include "isa.h"
#include "tile.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

constexpr int kStep = 2 * kBlock;
constexpr float kNothing = -__builtin_inff();

// Rows first .. first + rows - 1 of one sequence, for one KV head.
struct Item {
  std::int64_t sequence;
  std::int64_t first;
  int rows;
  std::int64_t kv_head;
};

// The query vectors of a work item and what they have seen so far.
template <class F>
struct Queries {
  alignas(64) typename F::Element q[kQueries * kMaxHead];  // [query][head]
  alignas(64) float out[kQueries * kMaxHead];              // [query][wide]
  float peak[kQueries];                                    // largest score
  float total[kQueries];                                   // sum of 2^(score - peak)
  float step[kQueries];                                    // int8: query = integers * step
  std::int32_t offset[kQueries];                           // int8: what keys + 128 add to a sum
};

// Queries of a register tile in one step.
template <class F>
struct Scores {
  alignas(64) float score[tile_rows * kStep];
  alignas(64) typename F::Element weight[tile_rows * kStep];
  float fade[tile_rows];  // what the earlier steps' output is multiplied by
  // int8 only: a weight is (weight * 128 + fine) * step, 14 bits in all
  alignas(64) typename F::Element fine[F::width == 4 ? tile_rows * kStep : 1];
  float step[tile_rows];
  std::int32_t offset[tile_rows];  // what values + 128 add to a sum
};

inline void load_query(const float* q, std::int64_t head, int i, Queries<Int8>& to) {
  std::int32_t integers[kMaxHead];
  to.step[i] = turned(q, head, integers);
  std::int32_t sum = 0;
  for (std::int64_t j = 0; j < head; j += lanes) {
    Int8::put(to.q + i * kMaxHead + j, load(integers + j));
  }
  for (std::int64_t j = 0; j < head; ++j) sum += integers[j];
  to.offset[i] = -128 * sum;
}

template <class F>
void load_query(const float* q, std::int64_t head, int i, Queries<F>& to) {
  typename F::Element* into = to.q + i * kMaxHead;
  std::int64_t j = 0;
  for (; j + lanes <= head; j += lanes) F::put(into + j, load(q + j));
  if (j < head) {
    typename F::Element rest[lanes];
    F::put(rest, load_part(q + j, int(head - j)));
    std::memcpy(into + j, rest, sizeof(rest[0]) * std::size_t(head - j));
  }
}

template <class F>
void load_queries(const Attention& a, const Item& item, const Layout& layout, Queries<F>& to) {
  const int count = item.rows * layout.group;
  for (int i = 0; i < count; ++i) {
    const float* q = a.qkv + (item.first + i / layout.group) * layout.width +
                     (item.kv_head * layout.group + i % layout.group) * layout.head;
    load_query(q, layout.head, i, to);
    to.peak[i] = kNothing;
    to.total[i] = 0.0f;
  }
  std::memset(to.out, 0, sizeof(float) * kMaxHead * unsigned(count));
}

// Where a step's keys and values are. A second block that the sequence does not have is never
// counted; the first stands in for it.
struct Step {
  std::int64_t base;
  const std::byte *low_keys, *high_keys, *low_values, *high_values;
  const float *low_scales, *high_scales;  // int8: of the keys, then of the values
};

inline Step step_at(const Attention& a, const Item& item, std::int64_t base) {
  const std::int64_t low = block_of(a, item.sequence, base / kBlock);
  const bool both = base + kBlock < a.lengths[item.sequence];
  const std::int64_t high = both ? block_of(a, item.sequence, base / kBlock + 1) : low;
  return {base, a.cache.keys(a.layer, low, item.kv_head), a.cache.keys(a.layer, high, item.kv_head),
          a.cache.values(a.layer, low, item.kv_head), a.cache.values(a.layer, high, item.kv_head),
          a.cache.scales(a.layer, low, item.kv_head), a.cache.scales(a.layer, high, item.kv_head)};
}

// score[r][0..63] = query r . key
template <class F, int rows>
void score(const Queries<F>& queries, int first, const Step& step, std::int64_t head,
           float* scores) {
  constexpr int half = tile_vecs / 2;
  constexpr std::int64_t stride = kBlock * 4;
  for (int column = 0; column < kBlock; column += half * lanes) {
    typename F::Accumulator t[rows][tile_vecs] = {};
    if constexpr (F::width == 4) {
      MAINSPRING_UNROLL
      for (int r = 0; r < rows; ++r) {
        MAINSPRING_UNROLL
        for (int v = 0; v < tile_vecs; ++v) t[r][v] = broadcast(queries.offset[first + r]);
      }
    }
    multiply<F, rows, tile_vecs>(
        queries.q + first * kMaxHead, kMaxHead,
        {step.low_keys + column * 4, step.high_keys + column * 4, stride},
        int(head + F::width - 1) / F::width, t);
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      MAINSPRING_UNROLL
      for (int v = 0; v < tile_vecs; ++v) {
        const int at = column + v % half * lanes;
        float* to = scores + r * kStep + v / half * kBlock + at;
        if constexpr (F::width == 4) {
          const float* scales = v < half ? step.low_scales : step.high_scales;
          store(to, to_float(t[r][v]) * (load(scales + at) * broadcast(queries.step[first + r])));
        } else {
          store(to, t[r][v]);
        }
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
inline float weigh(const float* score, float peak, const Step&, int r, Scores<F>& scores) {
  Float sums{};
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    const Float p = exp2(load(score + i) - broadcast(peak));
    sums += p;
    F::put(scores.weight + r * kStep + i, p);
  }
  return sum(sums);
}

// The same times the scales of the values, as integers of 14 bits. One of 7 would lose the many
// small weights beside a large one.
inline float weigh(const float* score, float peak, const Step& step, int r,
                   Scores<Int8>& scores) {
  Float sums{}, most{};
  alignas(64) float weights[kStep];
  MAINSPRING_UNROLL
  for (int i = 0; i < kStep; i += lanes) {
    const Float p = exp2(load(score + i) - broadcast(peak));
    const float* scales = i < kBlock ? step.low_scales + i : step.high_scales + i - kBlock;
    const Float w = p * load(scales + kBlock);
    sums += p;
    store(weights + i, w);
    most = max(w, most);
  }
  const Scale scale = scale_of_largest(largest(most), 16383.0f);
  Int total{};
  for (int i = 0; i < kStep; i += lanes) {
    const Int whole = quantized(load(weights + i), scale, 16383);
    Int8::put(scores.weight + r * kStep + i, whole >> 7);
    Int8::put(scores.fine + r * kStep + i, whole & 127);
    total += whole;
  }
  scores.step[r] = scale.step;
  scores.offset[r] = -128 * sum(total);
  return sum(sums);
}

// One step of the online softmax for the queries of a register tile.
template <class F, int rows>
void soften(const Attention& a, const Item& item, const Layout& layout, const Step& step,
            int first, Scores<F>& scores, Queries<F>& queries) {
  float* peaks = queries.peak + first;
  alignas(64) float fades[(tile_rows + lanes - 1) / lanes * lanes] = {};
  for (int r = 0; r < rows; ++r) {
    const Span span = seen_by(a, item, layout, first + r, step.base);
    const float highest = finish_scores(a, span, scores.score + r * kStep);
    const float next = highest > peaks[r] ? highest : peaks[r];
    fades[r] = peaks[r] - next;
    peaks[r] = next;
  }
  for (int i = 0; i < rows; i += lanes) store(fades + i, exp2(load(fades + i)));
  for (int r = 0; r < rows; ++r) {
    scores.fade[r] = fades[r];
    const float fresh = weigh(scores.score + r * kStep, peaks[r], step, r, scores);
    queries.total[first + r] = queries.total[first + r] * fades[r] + fresh;
  }
}

// out[r] = out[r] * fade[r] + weights . values, for `vecs` vectors of the head from `column` on.
template <class F, int rows, int vecs>
void gather(const Scores<F>& scores, const Step& step, std::int64_t wide, std::int64_t column,
            float* out) {
  const std::int64_t stride = wide * 4;
  constexpr std::int64_t upper = (vecs + 1) / 2 * lanes * 4;
  const std::byte* a = step.low_values + column * 4;
  const std::byte* b = step.high_values + column * 4;
  typename F::Accumulator t[rows][vecs] = {};
  const auto add = [&](const typename F::Element* weight) {
    multiply<F, rows, vecs>(weight, kStep, {a, a + upper, stride}, kBlock / F::width, t);
    multiply<F, rows, vecs>(weight + kBlock, kStep, {b, b + upper, stride}, kBlock / F::width, t);
  };
  const auto each = [&](const auto& body) {
    MAINSPRING_UNROLL
    for (int r = 0; r < rows; ++r) {
      MAINSPRING_UNROLL
      for (int v = 0; v < vecs; ++v) body(r, out + r * kMaxHead + column + v * lanes, t[r][v]);
    }
  };
  if constexpr (F::width == 4) {
    add(scores.weight);
    each([&](int r, float*, Int& sum) { sum = sum * 128 + broadcast(scores.offset[r]); });
    add(scores.fine);
    each([&](int r, float* to, Int& sum) {
      const Float old = load(to) * broadcast(scores.fade[r]);
      store(to, fma(to_float(sum), broadcast(scores.step[r]), old));
    });
  } else {
    each([&](int r, float* to, Float& sum) { sum = load(to) * broadcast(scores.fade[r]); });
    add(scores.weight);
    each([&](int, float* to, Float& sum) { store(to, sum); });
  }
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
  score<F, rows>(queries, first, step, layout.head, scores.score);
  soften<F, rows>(a, item, layout, step, first, scores, queries);
  const std::int64_t wide = a.cache.wide();
  std::int64_t column = 0;
  float* out = queries.out + first * kMaxHead;
  for (; column + tile_vecs * lanes <= wide; column += tile_vecs * lanes) {
    gather<F, rows, tile_vecs>(scores, step, wide, column, out);
  }
  for (; column < wide; column += 2 * lanes) {
    gather<F, rows, 2>(scores, step, wide, column, out);
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
    float* from = queries.out + i * kMaxHead;
    if constexpr (F::width == 4) turn(from, layout.head);
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
  if (a.cache.format == Format::int8) {
    attend_all<Int8>(context, a);
  } else if (a.cache.format == Format::bf16) {
    attend_all<BFloat16>(context, a);
  } else {
    attend_all<Float32>(context, a);
  }
}

}  // namespace mainspring::MAINSPRING_ISA
