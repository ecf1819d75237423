// Compiled once per instruction set, with -DSDPA_ISA=<name> and that instruction set's flags.
#include "kernels/cpu/decode.h"
#include "kernels/cpu/merge.h"
#include "kernels/cpu/prefill.h"

#define SDPA_NAME_(isa) #isa
#define SDPA_NAME(isa) SDPA_NAME_(isa)

namespace sdpa::cpu::SDPA_ISA {

extern const Kernels kernels;
const Kernels kernels{
    .isa = SDPA_NAME(SDPA_ISA),
    .prefill_scratch = prefill_scratch,
    .decode_scratch = decode_scratch,
    .prefill = prefill,
    .decode = decode,
    .merge = merge,
};

}  // namespace sdpa::cpu::SDPA_ISA
