"""Random bits of generated CUDA C: the numbers that the CPU draws."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "philox": """\
// Philox 4x32-10 (Salmon et al., SC 2011): key = seed, counter = (block, draw).
__device__ __forceinline__ void philox(i64 seed, i64 draw, unsigned long long block, unsigned words[4]) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32);
  unsigned c2 = unsigned(draw), c3 = unsigned((unsigned long long)draw >> 32);
  unsigned k0 = unsigned(seed), k1 = unsigned((unsigned long long)seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}
""",
    "uniform_f32": """\
__device__ __forceinline__ f32 uniform_f32(i64 seed, i64 draw, i64 element) {
  unsigned words[4];
  philox(seed, draw, (unsigned long long)element >> 2, words);
  const unsigned word = element & 2 ? (element & 1 ? words[3] : words[2]) : (element & 1 ? words[1] : words[0]);
  return f32(word >> 8) * 5.9604644775390625e-08f;
}
""",
    "uniform_f64": """\
__device__ __forceinline__ f64 uniform_f64(i64 seed, i64 draw, i64 element) {
  unsigned words[4];
  philox(seed, draw, (unsigned long long)element >> 1, words);
  const unsigned long long first = element & 1 ? words[2] : words[0], second = element & 1 ? words[3] : words[1];
  return f64((first << 21) ^ (second >> 11)) * 1.1102230246251565e-16;
}
""",
}  # fmt: skip
