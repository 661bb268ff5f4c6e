// Between the projections and attention: queries and keys are turned by their positions (RoPE, Su et al., arXiv 2104.09864,
// feature i of a head with feature i + D/2), keys and values go into the cache, position by position. A thread has two
// features of a token and head. Heads of the cache are filled up with zeros to a multiple of 8 features.
#include "ptx.cuh"

struct Place {
    /// [heads D, stride], turned in place
    u16 *queries;
    /// [kv_heads D, stride]
    const u16 *keys;
    /// [kv_heads D, stride]
    const u16 *values;
    /// [slots, kv_heads, capacity, row]
    u16 *cached_keys;
    /// [slots, kv_heads, capacity, row]
    u16 *cached_values;
    /// the sequence of each token in the cache, [T]
    const u32 *slots;
    /// the place of each token in its sequence, [T]
    const u32 *positions;
    /// [positions, D/2]
    const float *cosines;
    /// [positions, D/2]
    const float *sines;
    /// T
    u32 tokens;
    u32 stride;
    /// heads of queries that are turned; none where positions turn nothing
    u32 heads;
    u32 kv_heads;
    /// D
    u32 features;
    /// D, filled up to a multiple of 8
    u32 row;
    /// positions that a slot has room for
    u32 capacity;
};

template <class Half, bool ROTARY> struct PlaceTokens {
    using Operands = Place;
    static constexpr u32 THREADS = 128;

    const Place &p;
    LACUNA_DEVICE PlaceTokens(const Place &place) : p(place) {}

    LACUNA_DEVICE float value(const u16 *head, u32 feature, u32 token) const {
        return feature < p.features ? Half::widen(head[(u64)feature * p.stride + token]) : 0.0f;
    }

    LACUNA_DEVICE void run() const {
        wait_for_previous();
        // Tokens side by side are read together; of a single token, features are.
        u32 item = blockIdx.x * THREADS + threadIdx.x;
        u32 token = item % p.tokens, i = item / p.tokens;
        if (i >= p.row / 2) return;
        bool turned = ROTARY && i < p.features / 2;
        u32 low = turned ? i : 2 * i, high = turned ? i + p.features / 2 : low + 1;
        float cosine = 1.0f, sine = 0.0f;
        if (turned) {
            u64 at = (u64)p.positions[token] * (p.features / 2) + i;
            cosine = p.cosines[at];
            sine = p.sines[at];
        }
        u32 head = blockIdx.y;
        bool query = head < p.heads;
        u64 of_head = (u64)(query ? head : head - p.heads) * p.features * p.stride;
        const u16 *from = (query ? p.queries : p.keys) + of_head;
        float a = value(from, low, token), b = value(from, high, token);
        u16 first = (u16)Half::round(a * cosine - b * sine, 0.0f), second = (u16)Half::round(b * cosine + a * sine, 0.0f);
        if (query) {
            if (!turned) return;
            p.queries[of_head + (u64)low * p.stride + token] = first;
            p.queries[of_head + (u64)high * p.stride + token] = second;
            return;
        }
        u64 slot_head = (u64)p.slots[token] * p.kv_heads + (head - p.heads);
        u64 to = (slot_head * p.capacity + p.positions[token]) * p.row;
        p.cached_keys[to + low] = first;
        p.cached_keys[to + high] = second;
        p.cached_values[to + low] = (u16)Half::round(value(p.values + of_head, low, token), 0.0f);
        p.cached_values[to + high] = (u16)Half::round(value(p.values + of_head, high, token), 0.0f);
    }
};
