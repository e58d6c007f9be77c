// llmir_claim, llmir_done, llmir_wait: the workers of one dispatch share out several grids.
//
// A chain is one dispatch of as many workgroups as there are workers.  Each goes through the
// same stages, a stage being the grid of one kernel: it claims workgroups of the grid until none
// are left, and waits for those that others have claimed.  Who waits, waits for workers that are
// running: a workgroup that starts late, or when all is done, finds nothing to claim.  So it does
// not matter how many of them run at the same time.
//
// ABI: team i32[stages, 32], zeros before the dispatch.  Of a stage: how many workgroups were
// claimed; 64 bytes on, how many are done, and how many workers sleep until all are.
#include "simd.h"

#define STAGE_INTS 32
#define DONE_AT 16
#define SPINS 1000  // some 20 to 50 µs: longer waits are for large work, or for a busy machine

// The next workgroup of a stage; the grid's count or more, when none is left.
size_t llmir_claim(int32_t *team, size_t team_at, size_t stage) {
  int32_t *claimed = team + team_at + stage * STAGE_INTS;
  return (size_t)__atomic_fetch_add(claimed, 1, __ATOMIC_RELAXED);
}

// Linux's futex: sleep while *at is `value`, or wake all who sleep there.
enum { FUTEX_WAIT = 128, FUTEX_WAKE = 129 };  // of one process
static __attribute__((noinline, cold)) void futex(int32_t *at, long operation, long value) {
#if defined(__x86_64__)
  register long timeout __asm__("r10") = 0;
  long result = 202;
  __asm__ volatile("syscall"
                   : "+a"(result)
                   : "D"(at), "S"(operation), "d"(value), "r"(timeout)
                   : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register int32_t *x0 __asm__("x0") = at;
  register long x1 __asm__("x1") = operation, x2 __asm__("x2") = value, x3 __asm__("x3") = 0;
  register long x8 __asm__("x8") = 98;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory");
#endif
}

// One of the stage's `count` workgroups is done.
void llmir_done(int32_t *team, size_t team_at, size_t stage, size_t count) {
  int32_t *done = team + team_at + stage * STAGE_INTS + DONE_AT;
  const int32_t now = __atomic_add_fetch(done, 1, __ATOMIC_SEQ_CST);
  if ((size_t)now == count && __atomic_load_n(done + 1, __ATOMIC_SEQ_CST))
    futex(done, FUTEX_WAKE, 0x7FFFFFFF);
}

// Until all are; meanwhile the caches get the first bytes of `next`, which is read afterwards.
void llmir_wait(int32_t *team, size_t team_at, size_t stage, size_t count, const uint8_t *next,
                size_t next_at, size_t next_bytes) {
  int32_t *done = team + team_at + stage * STAGE_INTS + DONE_AT;
  next += next_at;
  size_t fetched = 0;
  for (int spins = 0; spins < SPINS; spins++) {
    if ((size_t)__atomic_load_n(done, __ATOMIC_ACQUIRE) >= count) return;
    for (size_t end = fetched + 256; fetched < end && fetched < next_bytes; fetched += 64)
      prefetch(next + fetched);
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
  // Either who is last sees that somebody sleeps, or the count is seen here.
  __atomic_fetch_add(done + 1, 1, __ATOMIC_SEQ_CST);
  for (int32_t now; (size_t)(now = __atomic_load_n(done, __ATOMIC_SEQ_CST)) < count;)
    futex(done, FUTEX_WAIT, now);
}
