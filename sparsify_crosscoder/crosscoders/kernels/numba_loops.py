"""The loops that numba compiles. Their arguments are arrays in row-major order."""

import numpy as np


def reaching(values, cuts):
    num_rows, width = values.shape
    total = 0
    for i in range(num_rows):
        in_row = np.int32(0)
        for j in range(width):
            in_row += values[i, j] >= cuts[j]
        total += in_row
    rows, columns = np.empty(total, np.int64), np.empty(total, np.int64)
    found = np.empty(total, values.dtype)
    flags = np.zeros(-(-width // 8) * 8, np.uint8)
    words = flags.view(np.uint64)
    one, ones = np.uint64(1), np.uint64(0x0101010101010101)
    place = 0
    for i in range(num_rows):
        for j in range(width):
            flags[j] = values[i, j] >= cuts[j]
        # Few are set: eight are passed over at a time.
        for w in range(len(words)):
            word = words[w]
            while word:
                # The bytes below the lowest that is set, added up in the highest byte.
                below = (((word & (~word + one)) - one) & ones) * ones >> np.uint64(56)
                j = 8 * w + np.int64(below)
                rows[place], columns[place], found[place] = i, j, values[i, j]
                place += 1
                word &= word - one
    return rows, columns, found


def largest(bits, budget):
    positive = 0
    for one in bits:
        positive += one > 0
    cut, left = bits.dtype.type(0), budget
    if positive >= budget:
        # Digit by digit from the highest: those of the numbers that agree with the cut so far.
        counts = np.empty(256, np.int64)
        for shift in range(8 * bits.itemsize - 8, -8, -8):
            counts[:] = 0
            for one in bits:
                if one > 0 and (one >> shift) >> 8 == cut:
                    counts[(one >> shift) & 255] += 1
            digit = 255
            while counts[digit] < left:
                left -= counts[digit]
                digit -= 1
            cut = (cut << 8) | digit
    kept = np.empty(min(budget, positive), np.int64)
    place = 0
    for e in range(len(bits)):
        if bits[e] > cut or (bits[e] == cut and cut > 0 and left > 0):
            left -= bits[e] == cut
            kept[place] = e
            place += 1
    return kept, np.full(1, cut, bits.dtype)


def order_by(keys, size):
    places = np.zeros(size + 1, np.int64)
    for key in keys:
        places[key + 1] += 1
    for m in range(size):
        places[m + 1] += places[m]
    starts = places[:size].copy()
    order = np.empty(len(keys), np.int64)
    for e in range(len(keys)):
        order[places[keys[e]]] = e
        places[keys[e]] += 1
    return order, starts


def entry_dots(a, b, rows, indices):
    dots = np.empty(len(rows), a.dtype)
    for e in range(len(rows)):
        row, index, total = rows[e], indices[e], a.dtype.type(0)
        for d in range(a.shape[1]):
            total += a[row, d] * b[index, d]
        dots[e] = total
    return dots


def normalized(parts, mean, factors):
    result = np.empty((len(parts[0]), len(mean)), mean.dtype)
    begin = 0
    for s in range(len(parts)):
        part, factor = parts[s], factors[s]
        end = begin + part.shape[1]
        centre = mean[begin:end]
        for i in range(len(result)):
            row = result[i, begin:end]
            for d in range(part.shape[1]):
                row[d] = (part[i, d] - centre[d]) * factor
        begin = end
    return result


def rounded(matrix, width):
    num_rows, read = matrix.shape
    bits, wide = matrix.view(np.uint32), np.zeros((num_rows, width), np.int16)
    norms, lost = np.empty(num_rows, matrix.dtype), np.empty(num_rows, matrix.dtype)
    kept = np.empty(read, np.uint32)
    rounded = kept.view(matrix.dtype)
    for i in range(num_rows):
        for d in range(read):
            # To the nearest, and of two that are as near to the even one.
            even = (bits[i, d] >> np.uint32(16)) & np.uint32(1)
            kept[d] = (bits[i, d] + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
            wide[i, d] = kept[d] >> np.uint32(16)
        squares, lost_squares = matrix.dtype.type(0), matrix.dtype.type(0)
        for d in range(read):
            difference = matrix[i, d] - rounded[d]
            squares += matrix[i, d] * matrix[i, d]
            lost_squares += difference * difference
        norms[i], lost[i] = np.sqrt(squares), np.sqrt(lost_squares)
    return wide, norms, lost


def norms_by_source(table, ends):
    norms = np.empty((len(ends), len(table)), table.dtype)
    for r in range(len(table)):
        begin = 0
        for s in range(len(ends)):
            squares = table.dtype.type(0)
            for d in range(begin, ends[s]):
                squares += table[r, d] * table[r, d]
            norms[s, r] = np.sqrt(squares)
            begin = ends[s]
    return norms


def errors(target, decoded, bias, ends):
    num_rows, width = target.shape
    error = np.empty_like(target)
    by_column = np.zeros(width)
    for i in range(num_rows):
        for d in range(width):
            error[i, d] = target[i, d] - (decoded[i, d] + bias[d])
        for d in range(width):
            by_column[d] += np.float64(error[i, d]) * np.float64(error[i, d])
    squares = np.empty(len(ends), target.dtype)
    begin = 0
    for s in range(len(ends)):
        squares[s] = by_column[begin : ends[s]].sum()
        begin = ends[s]
    return error, squares


def squared_distances(x, centre, ends):
    by_column = np.zeros(x.shape[1])
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            distance = np.float64(x[i, d] - centre[d])
            by_column[d] += distance * distance
    squares = np.empty(len(ends), x.dtype)
    begin = 0
    for s in range(len(ends)):
        squares[s] = by_column[begin : ends[s]].sum()
        begin = ends[s]
    return squares


def scaled_by_source(table, scales, ends):
    num_rows, width = table.shape
    scaled = np.empty_like(table)
    sums, by_column = np.zeros(width), np.empty(width, table.dtype)
    begin = 0
    for s in range(len(ends)):
        by_column[begin : ends[s]] = scales[s]
        begin = ends[s]
    for i in range(num_rows):
        for d in range(width):
            scaled[i, d] = table[i, d] * by_column[d]
        for d in range(width):
            sums[d] += np.float64(scaled[i, d])
    return scaled, sums.astype(table.dtype)


def row_sums(table, rows, indices, weights, num_rows):
    sums = np.zeros((num_rows, table.shape[1]), table.dtype)
    for e in range(len(rows)):
        row, index, weight = rows[e], indices[e], weights[e]
        for d in range(table.shape[1]):
            sums[row, d] += weight * table[index, d]
    return sums


def decoding_gradients(grad, acts, weight, rows, order, starts):
    grad_acts, grad_weight = np.empty_like(acts), np.zeros_like(weight)
    for m in range(len(starts)):
        end = starts[m + 1] if m + 1 < len(starts) else len(order)
        for place in range(starts[m], end):
            e = order[place]
            row, act, total = rows[e], acts[e], acts.dtype.type(0)
            for d in range(grad.shape[1]):
                total += grad[row, d] * weight[m, d]
                grad_weight[m, d] += act * grad[row, d]
            grad_acts[e] = total
    return grad_acts, grad_weight


def encoding_gradients(grad, x, rows, order, starts):
    num_pairs, width = x.shape
    grad_weight, grad_bias = np.zeros((len(starts), width), x.dtype), np.zeros(len(starts), x.dtype)
    for m in range(len(starts)):
        end = starts[m + 1] if m + 1 < len(starts) else len(order)
        for place in range(starts[m], end):
            e = order[place]
            row, one = rows[e] % num_pairs, grad[e]
            grad_bias[m] += one
            for d in range(width):
                grad_weight[m, d] += one * x[row, d]
    return grad_weight, grad_bias


EXACT = (reaching, largest, order_by, normalized)
SUMS = (
    entry_dots,
    row_sums,
    decoding_gradients,
    encoding_gradients,
    rounded,
    norms_by_source,
    errors,
    squared_distances,
    scaled_by_source,
)
