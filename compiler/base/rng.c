#include "base/rng.h"

#include <math.h>

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

vqkvc_rng vqkvc_rng_make(uint64_t seed, uint64_t stream)
{
    vqkvc_rng rng;
    uint64_t state = seed;
    state = splitmix64(&state) ^ (stream * 0xd1342543de82ef95u);
    for (int i = 0; i < 4; i++)
        rng.s[i] = splitmix64(&state);
    return rng;
}

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

uint64_t vqkvc_rng_u64(vqkvc_rng *rng)
{
    uint64_t *s = rng->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t vqkvc_rng_below(vqkvc_rng *rng, uint64_t n)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do
        x = vqkvc_rng_u64(rng);
    while (x >= limit);
    return x % n;
}

double vqkvc_rng_uniform(vqkvc_rng *rng)
{
    return (double)(vqkvc_rng_u64(rng) >> 11) * 0x1p-53;
}

double vqkvc_rng_normal(vqkvc_rng *rng)
{
    double u = 1.0 - vqkvc_rng_uniform(rng), v = vqkvc_rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}
