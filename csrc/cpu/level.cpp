// SPDX-License-Identifier: Apache-2.0
// Which of the compiled levels this CPU runs.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ditn {

#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
extern const Backward backward;
}
namespace avx512 {
extern const Kernels kernels;
extern const Backward backward;
}
#else
namespace neon {
extern const Kernels kernels;
extern const Backward backward;
}
#endif

namespace {

struct Candidate {
  Level level;
  bool runs;
};

Level choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {{{"avx512", &avx512::kernels, &avx512::backward}, avx512}, {{"avx2", &avx2::kernels, &avx2::backward}, avx2}};
#else
  const Candidate candidates[] = {{{"neon", &neon::kernels, &neon::backward}, true}};
#endif
  const char* forced = std::getenv("DITN_CPU_LEVEL");
  const std::string wanted = forced ? forced : "";
  std::string names;
  for (const Candidate& candidate : candidates) {
    if (wanted.empty() ? candidate.runs : wanted == candidate.level.name) {
      if (!candidate.runs) throw std::runtime_error("DITN_CPU_LEVEL is " + wanted + ", which this CPU cannot run");
      return candidate.level;
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate.level.name);
  }
  if (wanted.empty()) throw std::runtime_error("this CPU runs none of the compiled levels: " + names);
  throw std::runtime_error("DITN_CPU_LEVEL is " + wanted + ", compiled are " + names);
}

}  // namespace

const Level& level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace ditn
