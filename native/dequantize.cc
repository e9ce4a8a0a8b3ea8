// Each block is float16 scales and small integers; the layouts are those of ggml's quantized types
// (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h). Products are rounded to float32
// one by one in the order that gguf-py takes, so that the numbers are equal bit for bit.
#include "dequantize.h"

#include <bit>

namespace mainspring {

namespace {

constexpr int kSmall = 32;   // numbers of a block of the plain formats
constexpr int kSuper = 256;  // of the K formats, whose scales are quantized too

constexpr std::int8_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

std::uint32_t word(const std::uint8_t* p, int bytes) {
  std::uint32_t bits = 0;
  for (int i = 0; i < bytes; ++i) bits |= std::uint32_t(p[i]) << (8 * i);
  return bits;
}

// The float16 at p.
float half(const std::uint8_t* p) {
  const std::uint32_t bits = word(p, 2);
  const std::uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, tail = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | tail << 13);
  if (exponent == 0) {  // subnormal: tail * 2^-24, exactly
    const float value = float(tail) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | tail << 13);
}

void q4_0(const std::uint8_t* block, float* out) {
  const float d = half(block);
  const std::uint8_t* codes = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float((codes[i] & 15) - 8);
    out[i + 16] = d * float((codes[i] >> 4) - 8);
  }
}

void q4_1(const std::uint8_t* block, float* out) {
  const float d = half(block), least = half(block + 2);
  const std::uint8_t* codes = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float(codes[i] & 15) + least;
    out[i + 16] = d * float(codes[i] >> 4) + least;
  }
}

void q5_0(const std::uint8_t* block, float* out) {
  const float d = half(block);
  const std::uint32_t fifth = word(block + 2, 4);
  const std::uint8_t* codes = block + 6;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float(int((codes[i] & 15) | (fifth >> i & 1) << 4) - 16);
    out[i + 16] = d * float(int((codes[i] >> 4) | (fifth >> (i + 16) & 1) << 4) - 16);
  }
}

void q5_1(const std::uint8_t* block, float* out) {
  const float d = half(block), least = half(block + 2);
  const std::uint32_t fifth = word(block + 4, 4);
  const std::uint8_t* codes = block + 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float((codes[i] & 15) | (fifth >> i & 1) << 4) + least;
    out[i + 16] = d * float((codes[i] >> 4) | (fifth >> (i + 16) & 1) << 4) + least;
  }
}

void q8_0(const std::uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < kSmall; ++i) out[i] = d * float(std::int8_t(block[2 + i]));
}

void iq4_nl(const std::uint8_t* block, float* out) {
  const float d = half(block);
  const std::uint8_t* codes = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float(kNonLinear[codes[i] & 15]);
    out[i + 16] = d * float(kNonLinear[codes[i] >> 4]);
  }
}

void iq4_xs(const std::uint8_t* block, float* out) {
  const float d = half(block);
  const std::uint32_t high = word(block + 2, 2);
  const std::uint8_t *low = block + 4, *codes = block + 8;
  for (int part = 0; part < 8; ++part, out += 32, codes += 16) {
    const int scale = int((low[part / 2] >> 4 * (part % 2) & 15) | (high >> 2 * part & 3) << 4);
    const float step = d * float(scale - 32);
    for (int i = 0; i < 16; ++i) {
      out[i] = step * float(kNonLinear[codes[i] & 15]);
      out[i + 16] = step * float(kNonLinear[codes[i] >> 4]);
    }
  }
}

// Two bits a number: 16 of them share a four-bit scale and a four-bit minimum.
void q2_k(const std::uint8_t* block, float* out) {
  const std::uint8_t *scales = block, *codes = block + 16;
  const float d = half(block + 80), dmin = half(block + 82);
  for (int part = 0; part < 16; ++part, out += 16) {
    const float step = d * float(scales[part] & 15), least = dmin * float(scales[part] >> 4);
    const std::uint8_t* from = codes + part / 8 * 32 + part % 2 * 16;
    const int shift = part / 2 % 4 * 2;
    for (int i = 0; i < 16; ++i) out[i] = step * float(from[i] >> shift & 3) - least;
  }
}

// Two bits and a third kept apart; 16 numbers share a six-bit scale.
void q3_k(const std::uint8_t* block, float* out) {
  const std::uint8_t *thirds = block, *codes = block + 32, *scales = block + 96;
  const float d = half(block + 108);
  for (int part = 0; part < 16; ++part, out += 16) {
    const int low = part < 8 ? scales[part] & 15 : scales[part - 8] >> 4;
    const int high = scales[8 + part % 4] >> part / 4 * 2 & 3;
    const float step = d * float((low | high << 4) - 32);
    const std::uint8_t* from = codes + part / 8 * 32 + part % 2 * 16;
    const std::uint8_t* third = thirds + part % 2 * 16;
    const int shift = part / 2 % 4 * 2;
    for (int i = 0; i < 16; ++i) {
      const int lower = third[i] >> part / 2 & 1 ? 0 : 4;
      out[i] = step * float((from[i] >> shift & 3) - lower);
    }
  }
}

// Scale and minimum of each 32 numbers of Q4_K and Q5_K: eight of six bits each in 12 bytes.
struct Steps {
  float step[8], least[8];

  explicit Steps(const std::uint8_t* block) {
    const float d = half(block), dmin = half(block + 2);
    const std::uint8_t* s = block + 4;
    for (int i = 0; i < 4; ++i) {
      step[i] = d * float(s[i] & 63);
      least[i] = dmin * float(s[i + 4] & 63);
      step[i + 4] = d * float((s[i + 8] & 15) | s[i] >> 6 << 4);
      least[i + 4] = dmin * float(s[i + 8] >> 4 | s[i + 4] >> 6 << 4);
    }
  }
};

void q4_k(const std::uint8_t* block, float* out) {
  const Steps steps(block);
  const std::uint8_t* codes = block + 16;
  for (int part = 0; part < 8; ++part, out += 32) {
    const std::uint8_t* from = codes + part / 2 * 32;
    const int shift = part % 2 * 4;
    const float step = steps.step[part], least = steps.least[part];
    for (int i = 0; i < 32; ++i) out[i] = step * float(from[i] >> shift & 15) - least;
  }
}

void q5_k(const std::uint8_t* block, float* out) {
  const Steps steps(block);
  const std::uint8_t *fifth = block + 16, *codes = block + 48;
  for (int part = 0; part < 8; ++part, out += 32) {
    const std::uint8_t* from = codes + part / 2 * 32;
    const int shift = part % 2 * 4;
    const float step = steps.step[part], least = steps.least[part];
    for (int i = 0; i < 32; ++i) {
      out[i] = step * float((from[i] >> shift & 15) | (fifth[i] >> part & 1) << 4) - least;
    }
  }
}

void q6_k(const std::uint8_t* block, float* out) {
  const std::uint8_t *low = block, *high = block + 128, *scales = block + 192;
  const float d = half(block + 208);
  for (int part = 0; part < 16; ++part, out += 16) {
    const int quarter = part / 2 % 4, at = part / 8 * 64 + quarter % 2 * 32 + part % 2 * 16;
    const std::uint8_t *from = low + at, *upper = high + part / 8 * 32 + part % 2 * 16;
    const int shift = quarter / 2 * 4, place = quarter * 2;
    const float step = d * float(std::int8_t(scales[part]));
    for (int i = 0; i < 16; ++i) {
      out[i] = step * float(((from[i] >> shift & 15) | (upper[i] >> place & 3) << 4) - 32);
    }
  }
}

constexpr BlockFormat kFormats[] = {
    {"Q4_0", kSmall, 18, q4_0},     {"Q4_1", kSmall, 20, q4_1},   {"Q5_0", kSmall, 22, q5_0},
    {"Q5_1", kSmall, 24, q5_1},     {"Q8_0", kSmall, 34, q8_0},   {"Q2_K", kSuper, 84, q2_k},
    {"Q3_K", kSuper, 110, q3_k},    {"Q4_K", kSuper, 144, q4_k},  {"Q5_K", kSuper, 176, q5_k},
    {"Q6_K", kSuper, 210, q6_k},    {"IQ4_NL", kSmall, 18, iq4_nl}, {"IQ4_XS", kSuper, 136, iq4_xs},
};

}  // namespace

const BlockFormat* block_format(const std::string& name) {
  for (const BlockFormat& format : kFormats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

}  // namespace mainspring
