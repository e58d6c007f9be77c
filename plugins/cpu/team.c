// llmir_claim, llmir_done, llmir_wait: the workers of one dispatch share out several grids.
//
// A chain is one dispatch of as many workgroups as there are workers.  Each goes through the
// same stages, a stage being the grid of one kernel: it claims workgroups of the grid until none
// are left, and waits for those that others have claimed.  Who waits, waits for workers that are
// running: a workgroup that starts late, or when all is done, finds nothing to claim.  So it does
// not matter how many of them run at the same time.
//
// ABI: team i32[stages, 32], zeros before the dispatch.  Of a stage: how many workgroups were
// claimed; 64 bytes on, how many are done.
#include "simd.h"

#define STAGE_INTS 32
#define DONE_AT 16
#define SPINS 4096

// The next workgroup of a stage; the grid's count or more, when none is left.
size_t llmir_claim(int32_t *team, size_t team_at, size_t stage) {
  int32_t *claimed = team + team_at + stage * STAGE_INTS;
  return (size_t)__atomic_fetch_add(claimed, 1, __ATOMIC_RELAXED);
}

void llmir_done(int32_t *team, size_t team_at, size_t stage) {
  __atomic_fetch_add(team + team_at + stage * STAGE_INTS + DONE_AT, 1, __ATOMIC_RELEASE);
}

// Let whoever else wants this core have it: the worker that is waited for may be one.
INLINE void yield_core(void) {
#if defined(__x86_64__)
  long result = 24;  // Linux's sched_yield
  __asm__ volatile("syscall" : "+a"(result) : : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register long number __asm__("x8") = 124;
  register long result __asm__("x0");
  __asm__ volatile("svc #0" : "=r"(result) : "r"(number) : "memory");
#endif
}

void llmir_wait(const int32_t *team, size_t team_at, size_t stage, size_t count) {
  const int32_t *done = team + team_at + stage * STAGE_INTS + DONE_AT;
  for (int spins = 0; (size_t)__atomic_load_n(done, __ATOMIC_ACQUIRE) < count; spins++) {
    if (spins >= SPINS) {
      yield_core();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
}
