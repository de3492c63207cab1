// The elementwise passes over a tile of logits [n, width]: running terms in the forward pass, the gradient in place in the backward pass.
#include "../lanes.h"

// e^(2x) form of the hyperbolic tangent; exact at both ends.
INLINE V tanh(V x) {
    V size = x < 0.0f ? -x : x;
    V e = exp(size * -2.0f);
    V y = (1.0f - e) * reciprocal(1.0f + e);
    V small = x * (1.0f - x * x * (1.0f / 3.0f));  // below 0.02 the difference above loses digits
    y = x < 0.0f ? -y : y;
    return size < 0.02f ? small : y;
}
INLINE V capped(V z, float cap) { return cap > 0.0f ? cap * tanh(z / cap) : z; }

// kept: five rows of n floats: maximum, sum of p = e^(z - maximum), and where `more` is asked sum of p (z - maximum) and sum of z; then z
// of the target. best: place of the maximum, where `more` is asked.
template <class T>
static void gather(const T* z, int64_t n, int64_t width, int64_t first, const int64_t* target, float cap, float* kept, int64_t* best,
                   int more, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < n; row++) {
        const T* z_row = z + row * width;
        float *maximum = kept + row, *powers = maximum + n, *weighted = powers + n, *total = weighted + n, *wanted = total + n;
        auto logit = [&](int64_t i, auto part) { return within(capped(at(z_row + i, part), cap), part, -INFINITY); };
        V high = splat(-INFINITY);
        lanes(width, [&](int64_t i, auto part) { high = larger(high, logit(i, part)); });
        float top = largest(high);
        if (top > *maximum) {
            float shift = *maximum - top, shrink = std::exp(shift);
            *weighted = shrink > 0.0f ? (*weighted + shift * *powers) * shrink : 0.0f;
            *powers *= shrink;
            *maximum = top;
            bool found = !more;
            lanes(found ? 0 : width, [&](int64_t i, auto part) {
                if (found) return;
                V v = logit(i, part);
                for (int64_t j = 0; j < LANES && !found; j++)
                    if (v[j] == top) best[row] = first + i + j, found = true;
            });
        }
        float shift = *maximum;
        V p_sum = V{}, weighted_sum = V{}, z_sum = V{};
        if (more)
            lanes(width, [&](int64_t i, auto part) {
                V v = logit(i, part), p = exp(v - shift);
                p_sum += p;
                weighted_sum += p > 0.0f ? p * (v - shift) : V{};
                z_sum += within(v, part, 0);
            });
        else
            lanes(width, [&](int64_t i, auto part) { p_sum += exp(logit(i, part) - shift); });
        *powers += sum(p_sum);
        *weighted += sum(weighted_sum);
        *total += sum(z_sum);
        int64_t place = target[row] - first;
        if (place >= 0 && place < width) *wanted = capped(load_some(z_row + place, 1), cap)[0];
    }
}

// dz = p (a - e (log p + entropy)) + c, with b added at the target and the slope of the cap as a factor; grads: rows a, b, c, e of n floats
template <class T>
static void differentiate(T* z, int64_t n, int64_t width, int64_t first, const int64_t* target, float cap, const float* log_partition,
                          const float* entropy, const float* grads, int more, int threads) {
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < n; row++) {
        T* z_row = z + row * width;
        float a = grads[row], b = grads[n + row], c = grads[2 * n + row], e = grads[3 * n + row];
        float partition = log_partition[row], spread = entropy[row];
        int64_t place = target[row] - first;
        bool here = place >= 0 && place < width;
        V at_target = V{};
        if (here) at_target = load_some(z_row + place, 1);
        auto slope = [&](V raw, float hit) {
            V v = capped(raw, cap), log_p = v - partition, p = exp(log_p);
            V d = p * a + hit;
            if (more) {
                d += c - (p > 0.0f ? p * (log_p + spread) * e : V{});
                if (cap > 0.0f) d *= 1.0f - (v / cap) * (v / cap);
            }
            return d;
        };
        lanes(width, [&](int64_t i, auto part) { put(z_row + i, slope(at(z_row + i, part), 0.0f), part); });
        if (here) store_some(z_row + place, slope(at_target, b), 1);
    }
}

#define BOTH(T, letter)                                                                                                                 \
    extern "C" void gather_##letter(const T* z, int64_t n, int64_t width, int64_t first, const int64_t* target, float cap, float* kept, \
                                    int64_t* best, int more, int threads) {                                                             \
        gather(z, n, width, first, target, cap, kept, best, more, threads);                                                             \
    }                                                                                                                                   \
    extern "C" void differentiate_##letter(T* z, int64_t n, int64_t width, int64_t first, const int64_t* target, float cap,             \
                                           const float* log_partition, const float* entropy, const float* grads, int more,              \
                                           int threads) {                                                                               \
        differentiate(z, n, width, first, target, cap, log_partition, entropy, grads, more, threads);                                   \
    }
BOTH(float, f)
BOTH(bf16, b)
