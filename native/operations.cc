#include "isa.h"

#define MAINSPRING_TEXT(name) #name
#define MAINSPRING_NAME(name) MAINSPRING_TEXT(name)

namespace mainspring::MAINSPRING_ISA {

const Operations operations = {
    MAINSPRING_NAME(MAINSPRING_ISA),
    pack,
    pack_codes,
    linear,
    gated_linear,
    add_low_rank,
    gate,
    embedding,
    rms_norm,
    head_norm,
    rope,
    softcap,
    attention,
    sample,
    log_probabilities,
    int8_rate,
    read_rate,
};

}  // namespace mainspring::MAINSPRING_ISA
