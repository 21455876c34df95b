"""Decoders that share no line with the package: slow, plain, and therefore right."""


def huffman(lengths, payload, count):
    """``count`` symbols of a canonical code, bit by bit."""
    codes, code = {}, 0
    for length in range(1, 16):
        for symbol in [s for s, n in enumerate(lengths) if n == length]:
            codes[length, code] = symbol
            code += 1
        code <<= 1
    symbols, at, length, code = [], 0, 0, 0
    while len(symbols) < count:
        code, length = code << 1 | payload[at // 8] >> 7 - at % 8 & 1, length + 1
        at += 1
        if (length, code) in codes:
            symbols.append(codes[length, code])
            length = code = 0
    return bytes(symbols)


def rans(frequencies, states, words, count):
    """``count`` symbols, dealt out to states in turn; every state is a number without an upper end.

    Frequencies are of 2**14; words of 16 bits are read by the states that fall below 2**16, in turn.
    """
    below = [sum(frequencies[:symbol]) for symbol in range(len(frequencies))]
    states, words, symbols = list(states), list(words), []
    for index in range(count):
        lane = index % len(states)
        state = states[lane]
        slot = state % 2**14
        symbol = next(s for s, start in enumerate(below) if start <= slot < start + frequencies[s])
        symbols.append(symbol)
        state = frequencies[symbol] * (state // 2**14) + slot - below[symbol]
        if state < 2**16 and words:
            state = state * 2**16 + words.pop(0)
        states[lane] = state
    assert not words
    assert len(set(states)) == 1
    return bytes(symbols)


def inflate(data):
    """RFC 1951 without matches, which Huffman-only mode never makes."""
    at = 0

    def take(number):
        nonlocal at
        value = sum((data[(at + i) // 8] >> (at + i) % 8 & 1) << i for i in range(number))
        at += number
        return value

    def table(lengths):
        codes, code = {}, 0
        for length in range(1, 16):
            for symbol in [s for s, n in enumerate(lengths) if n == length]:
                codes[length, code] = symbol
                code += 1
            code <<= 1
        return codes

    def symbol(codes):
        length = code = 0
        while (length, code) not in codes:
            code, length = code << 1 | take(1), length + 1
        return codes[length, code]

    out, final = bytearray(), 0
    while not final:
        final, kind = take(1), take(2)
        if kind == 0:
            at = -(-at // 8) * 8
            size = take(16)
            take(16)
            out += bytes(take(8) for _ in range(size))
            continue
        lengths = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
        if kind == 2:
            literals, distances, number = take(5) + 257, take(5) + 1, take(4) + 4
            order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
            small = [0] * 19
            for place in order[:number]:
                small[place] = take(3)
            codes, lengths = table(small), []
            while len(lengths) < literals + distances:
                code = symbol(codes)
                if code < 16:
                    lengths.append(code)
                else:
                    value = lengths[-1] if code == 16 else 0
                    lengths += [value] * {16: lambda: 3 + take(2), 17: lambda: 3 + take(3), 18: lambda: 11 + take(7)}[
                        code
                    ]()
            lengths = lengths[:literals]
        codes = table(lengths)
        while (code := symbol(codes)) != 256:
            assert code < 256, "a match"
            out.append(code)
    return bytes(out)
