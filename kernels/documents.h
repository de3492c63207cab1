// What each token of a packed row is to a recurrence.
#pragma once
#include <cstdint>
#include <vector>

enum Kind : int8_t { PADDING = 0, INSIDE = 1, FRESH = 2 };  // FRESH: the first token of a document, which sees no state

static std::vector<Kind> kinds(const int32_t* document, int64_t t, bool goes_on) {
    std::vector<Kind> kind(t);
    int32_t current = 0;
    for (int64_t i = 0; i < t; i++) {
        if (document[i] <= 0) {
            kind[i] = PADDING;
            continue;
        }
        kind[i] = (current ? document[i] == current : goes_on) ? INSIDE : FRESH;
        current = document[i];
    }
    return kind;
}
