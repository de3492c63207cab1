// What stands around Fourier transforms: signals laid between zeros, and products of spectra.
#include "../lanes.h"

// out [n, c, m, size] gets x [n, c, m, l], of any strides, from place `lead` on, and zeros elsewhere.
extern "C" void lay(const float* x, float* out, const int64_t* sizes, const int64_t* strides, int64_t lead, int64_t size, int threads) {
    constexpr int64_t TIMES = 64;
    int64_t channels = sizes[1], signals = sizes[2], length = sizes[3], blocks = (channels + LANES - 1) / LANES;
    ROWS_IN_PARALLEL(threads)
    for (int64_t unit = 0; unit < sizes[0] * signals * blocks; unit++) {
        int64_t n = unit / (signals * blocks), m = unit / blocks % signals, first = unit % blocks * LANES;
        int64_t count = channels - first < LANES ? channels - first : LANES;
        const float* from = x + n * strides[0] + m * strides[2] + first * strides[1];
        float* to = out + ((n * channels + first) * signals + m) * size;
        for (int64_t c = 0; c < count; c++) {
            float* row = to + c * signals * size;
            memset(row, 0, lead * sizeof(float));
            memset(row + lead + length, 0, (size - lead - length) * sizeof(float));
            if (strides[3] == 1) memcpy(row + lead, from + c * strides[1], length * sizeof(float));
        }
        if (strides[3] == 1) continue;
        float tile[LANES][TIMES];
        for (int64_t begin = 0; begin < length; begin += TIMES) {
            int64_t steps = length - begin < TIMES ? length - begin : TIMES;
            for (int64_t t = 0; t < steps; t++)
                for (int64_t c = 0; c < count; c++) tile[c][t] = from[(begin + t) * strides[3] + c * strides[1]];
            for (int64_t c = 0; c < count; c++) memcpy(to + c * signals * size + lead + begin, tile[c], steps * sizeof(float));
        }
    }
}

// out = a * b, or a * conj(b): complex [rows, f]; row r of a goes with row r / repeat % others of b.
extern "C" void times(const float* a, const float* b, float* out, int64_t rows, int64_t f, int64_t repeat, int64_t others, int conjugate,
                      int threads) {
    float sign = conjugate ? -1.0f : 1.0f;
    ROWS_IN_PARALLEL(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *u = a + 2 * row * f, *v = b + 2 * (row / repeat % others) * f;
        float* y = out + 2 * row * f;
        for (int64_t i = 0; i < f; i++) {
            float ur = u[2 * i], ui = u[2 * i + 1], vr = v[2 * i], vi = sign * v[2 * i + 1];
            y[2 * i] = ur * vr - ui * vi;
            y[2 * i + 1] = ur * vi + ui * vr;
        }
    }
}
