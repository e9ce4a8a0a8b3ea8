// Paged causal attention with an online softmax.
//
// A context is walked in segments of 1024 tokens (aligned to 1024), each by itself, and the
// segments are added in order of position. So the segments of one long context can be walked by
// many threads, and a row's bits depend neither on that nor on how its prompt was cut.
#include <algorithm>
#include <new>
#include <vector>

#include "isa.h"
#include "step.h"

namespace mainspring::MAINSPRING_ISA {

namespace {

constexpr std::int64_t kSegment = 1024;

// What is left of an item whose segments are walked one by one.
struct Pieces {
  std::int64_t at;  // in memory: [segment] Softmax
  int segments;
  int left;  // not yet walked
};

// The smallest unit of work: the segments of an item within tokens [begin, end).
struct Part {
  Item item;
  std::int64_t begin, end;
  std::int64_t pieces;  // index, or -1: all the item's segments are in this part
};

// A thread's own memory.
template <class F>
struct Room {
  Queries<F> queries;
  alignas(64) float all[Softmax::size(kMaxGroup, kMaxHead)];
  alignas(64) float segment[Softmax::size(kMaxGroup, kMaxHead)];
};

template <class F>
void load_queries(const Attention& a, const Item& item, const Layout& layout, Queries<F>& to) {
  for (int i = 0; i < item.rows * layout.group; ++i) {
    const std::int64_t row = item.first + i / layout.group;
    const float* q = a.qkv + row * layout.width +
                     (item.kv_head * layout.group + i % layout.group) * layout.head;
    load_query(a, q, i, to);
    to.position[i] = position_of(a, item.sequence, row);
  }
}

// What comes into the cache while the step at `base` of a part is computed: the step after it, or
// the first of the part that this thread is likely to take next.
inline Fetch fetch_after(const Attention& a, const Part& part, const Part* next, std::int64_t base,
                         int times) {
  if (base + kStep < part.end) return {a, part.item, base + kStep, times};
  return next == nullptr ? Fetch() : Fetch(a, next->item, next->begin, times);
}

// Steps from `base` to before `end`.
template <class F>
void walk(const Attention& a, const Part& part, const Part* next, std::int64_t base,
          std::int64_t end, const Queries<F>& queries, const Softmax& seen) {
  const Item& item = part.item;
  const Layout layout(a);
  const std::int64_t begin = position_of(a, item.sequence, item.first);
  for (; base < end; base += kStep) {
    // Rows that see something of this step; for the others it must not exist at all.
    const std::int64_t from = base > begin ? base - begin : 0;
    std::int64_t to = item.rows;
    if (a.window > 0 && base + kStep - 1 + a.window - begin < to) {
      to = base + kStep - 1 + a.window - begin;
    }
    const Step step = step_at(a, item, base);
    const int first = int(from) * layout.group, count = int(to - from) * layout.group;
    Fetch fetch = fetch_after(a, part, next, base, (count + tile_rows - 1) / tile_rows * 3);
    ValueScales values;
    for_tiles(count, [&](int tile, int height) {
      with_rows(height, [&]<int rows>() {
        attend_tile<F, rows>(a, step, first + tile, queries, values, fetch, seen);
      });
    });
  }
}

template <class F>
void write(const Attention& a, const Item& item, const Layout& layout, const Softmax& seen) {
  for (int i = 0; i < item.rows * layout.group; ++i) {
    const std::int64_t head = item.kv_head * layout.group + i % layout.group;
    float* out = a.out + ((item.first + i / layout.group) * a.heads + head) * layout.head;
    float* from = seen.out + i * a.cache.wide();
    if constexpr (F::width == 4) turn(from, layout.head);
    float total = sum(load(seen.total + i * lanes)), fade = 1.0f;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2E, peak = seen.peak[i];
      const float next = sink > peak ? sink : peak;
      fade = power(peak - next);
      total = total * fade + power(sink - next);
    }
    for (std::int64_t j = 0; j < layout.head; ++j) out[j] = from[j] * fade / total;
  }
}

// The last position that an item sees, and the first step that it sees anything of.
inline std::int64_t last_of(const Attention& a, const Item& item) {
  return position_of(a, item.sequence, item.first + item.rows - 1);
}
inline std::int64_t oldest_of(const Attention& a, const Item& item) {
  const std::int64_t begin = position_of(a, item.sequence, item.first);
  return a.window > 0 && begin >= a.window ? (begin - a.window + 1) / kStep * kStep : 0;
}

inline std::int64_t end_of_segment(std::int64_t begin, std::int64_t end) {
  const std::int64_t next = (begin / kSegment + 1) * kSegment;
  return next < end ? next : end;
}

// All segments of an item, one after the other.
template <class F>
void attend_whole(const Attention& a, const Part& part, const Part* next, const Layout& layout,
                  Room<F>& room) {
  const std::int64_t count = part.item.rows * layout.group, wide = a.cache.wide();
  const Softmax all(room.all, count, wide), segment(room.segment, count, wide);
  for (std::int64_t begin = part.begin; begin < part.end; begin = end_of_segment(begin, part.end)) {
    const Softmax& seen = begin == part.begin ? all : segment;
    seen.clear(count, wide);
    walk(a, part, next, begin, end_of_segment(begin, part.end), room.queries, seen);
    if (begin != part.begin) all.add(segment, count, wide);
  }
  write<F>(a, part.item, layout, all);
}

// One segment. Whoever is the last to walk one of an item adds them all.
template <class F>
void attend_piece(const Attention& a, const Part& part, const Part* next, const Layout& layout,
                  Pieces& pieces, float* memory, Room<F>& room) {
  const std::int64_t count = part.item.rows * layout.group, wide = a.cache.wide();
  const auto segment = [&](std::int64_t index) {
    return Softmax(memory + pieces.at + index * Softmax::size(count, wide), count, wide);
  };
  const Softmax mine = segment(part.begin / kSegment - oldest_of(a, part.item) / kSegment);
  mine.clear(count, wide);
  walk(a, part, next, part.begin, part.end, room.queries, mine);
  if (__atomic_sub_fetch(&pieces.left, 1, __ATOMIC_ACQ_REL) > 0) return;
  for (int i = 1; i < pieces.segments; ++i) segment(0).add(segment(i), count, wide);
  write<F>(a, part.item, layout, segment(0));
}

// All work of a call, longest first: a thread that took a long part last would let the others wait.
class Plan {
 public:
  explicit Plan(const Attention& a) : layout_(a) {
    for (std::int64_t s = 0; s < a.sequences; ++s) {
      for (std::int64_t row = a.starts[s]; row < a.starts[s + 1]; row += layout_.rows) {
        const std::int64_t left = a.starts[s + 1] - row;
        const int rows = int(left < layout_.rows ? left : layout_.rows);
        for (std::int64_t h = 0; h < a.cache.heads; ++h) add(a, {s, row, rows, h});
      }
    }
    std::sort(parts.begin(), parts.end(), [](const Part& x, const Part& y) {
      return (x.end - x.begin) * x.item.rows > (y.end - y.begin) * y.item.rows;
    });
  }

  std::vector<Part> parts;
  std::vector<Pieces> pieces;
  std::int64_t floats = 0;  // of memory for all pieces

 private:
  // Items of long prompts are many, and their output is large: they stay whole.
  void add(const Attention& a, const Item& item) {
    const std::int64_t begin = oldest_of(a, item), end = last_of(a, item) + 1;
    const int segments = int((end - 1) / kSegment - begin / kSegment + 1);
    const bool whole = a.starts[item.sequence + 1] - a.starts[item.sequence] > item.rows;
    if (whole || segments == 1) return parts.push_back({item, begin, end, -1});
    for (std::int64_t from = begin; from < end; from = end_of_segment(from, end)) {
      parts.push_back({item, from, end_of_segment(from, end), std::int64_t(pieces.size())});
    }
    pieces.push_back({floats, segments, segments});
    floats += segments * Softmax::size(item.rows * layout_.group, a.cache.wide());
  }

  Layout layout_;
};

template <class F>
void attend_all(const Context& context, const Attention& a) {
  Plan plan(a);
  const Scratch<Room<F>> rooms(context.arena, context.pool.threads());
  const Scratch<float> memory(context.arena, plan.floats);
  const auto count = std::int64_t(plan.parts.size());
  const Part* parts = plan.parts.data();
  const Layout layout(a);
  parallel(context.pool, count, [&](std::int64_t index, int thread) {
    const Part& part = parts[index];
    const std::int64_t later = index + context.pool.threads();
    const Part* next = later < count ? parts + later : nullptr;
    Room<F>& room = rooms.data()[thread];
    load_queries(a, part.item, layout, room.queries);
    if (part.pieces < 0) return attend_whole(a, part, next, layout, room);
    attend_piece(a, part, next, layout, plan.pieces[std::size_t(part.pieces)], memory.data(), room);
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
