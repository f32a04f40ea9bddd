// SPDX-License-Identifier: Apache-2.0
// Which of the compiled levels this CPU runs.
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace ditn {

#if defined(__x86_64__)
namespace avx2 {
extern const Level level;
}
namespace avx512 {
extern const Level level;
}
namespace avx512bf16 {
extern const Level level;
}
#if defined(DITN_AMX)
namespace amx {
extern const Level level;
}
#endif
#else
namespace neon {
extern const Level level;
}
#endif

namespace {

struct Candidate {
  const Level& level;
  bool runs;
};

#if defined(DITN_AMX)
// Whether there are tiles of bfloat16, and Linux (5.16 or newer) lets this process use them, for which it wants to be asked.
bool has_amx() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (~edx & (kBfloat16 | kTiles))) return false;
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
}
#endif

const Level& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  const Candidate candidates[] = {
#if defined(DITN_AMX)
      {amx::level, avx512bf16 && has_amx()},
#endif
      {avx512bf16::level, avx512bf16},
      {avx512::level, avx512},
      {avx2::level, avx2}};
#else
  const Candidate candidates[] = {{neon::level, true}};
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
  static const Level& chosen = choose();
  return chosen;
}

}  // namespace ditn
