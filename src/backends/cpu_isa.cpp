// Compiled once per instruction set, with -DSDPA_ISA=<name> and that instruction set's flags.
#include "kernels/cpu/backward.h"
#include "kernels/cpu/backward_rows.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/merge.h"
#include "kernels/cpu/prefill.h"
#include "kernels/cpu/quantized.h"

#define SDPA_NAME_(isa) #isa
#define SDPA_NAME(isa) SDPA_NAME_(isa)

namespace sdpa::cpu::SDPA_ISA {

static const BackwardKernels backward_kernels{
    .sum_leading = leading<float>,
    .scratch = backward_scratch,
    .rows = backward_rows,
    .tile = backward_tile,
    .sink = backward_sink,
    .store = backward_store,
};

extern const Kernels kernels;
const Kernels kernels{
    .isa = SDPA_NAME(SDPA_ISA),
    .prefill_scratch = prefill_scratch,
    .decode_scratch = decode_scratch,
    .quantized_scratch = quantized_scratch,
    .prefill = prefill,
    .decode = decode,
    .quantized = quantized,
    .merge = merge,
    .backward = &backward_kernels,
};

}  // namespace sdpa::cpu::SDPA_ISA
