// A node that lets memory be returned before more of the graph is scheduled.
#pragma once

#include <vector>

#include <mlx/array.h>
#include <mlx/utils.h>

namespace sdpa {

namespace mx = mlx::core;

// xs unchanged, but what depends on them is not scheduled before `done` has been computed and its temporaries are freed.
//
// MLX allocates when it schedules, and schedules up to about a hundred operations ahead of their execution, so a
// chain of dependences alone does not bound memory: the scores of several blocks would be allocated before the first
// is computed. The barrier announces more tasks than the scheduler lets be active, all of which end when `done` is
// there; MLX then commits open GPU work and waits in its own loop, where that is safe.
std::vector<mx::array> after(const std::vector<mx::array>& xs, const mx::array& done,
                             mx::StreamOrDevice s);

}  // namespace sdpa
