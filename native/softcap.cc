// x = cap tanh(x / cap).
#include "isa.h"
#include "rows.h"
#include "vec.h"

namespace mainspring::MAINSPRING_ISA {

void softcap(const Context& context, float* x, std::int64_t count, float cap) {
  constexpr std::int64_t piece = 4096;
  each_row(context, (count + piece - 1) / piece, 4 * piece, [&](std::int64_t part) {
    const std::int64_t end = (part + 1) * piece < count ? (part + 1) * piece : count;
    std::int64_t i = part * piece;
    for (; i + lanes <= end; i += lanes) {
      store(x + i, broadcast(cap) * tanh(load(x + i) / broadcast(cap)));
    }
    if (i < end) {
      const int left = int(end - i);
      store_part(x + i, broadcast(cap) * tanh(load_part(x + i, left) / broadcast(cap)), left);
    }
  });
}

}  // namespace mainspring::MAINSPRING_ISA
