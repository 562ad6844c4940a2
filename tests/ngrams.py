"""An oracle for n-grams: what an ARPA file says, read and backed off in the simplest way."""


def read_arpa(text):
    """{n-gram of words: (log10 of probability, log10 of back-off weight)}"""
    table = {}
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            table[tuple(fields[1].split())] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0)
    return table


def log10_of_word(table, context, word):
    """log10 of the probability of a word after a context of any length."""
    word = word if (word,) in table else "<unk>"
    context = tuple(w if (w,) in table else "<unk>" for w in context)
    if (*context, word) in table:
        return table[*context, word][0]
    return table.get(context, (0.0, 0.0))[1] + log10_of_word(table, context[1:], word)


def log10_of_sentence(table, words):
    """log10 of the probability of a sentence and its end."""
    said, order = ["<s>", *words, "</s>"], max(map(len, table))
    return sum(log10_of_word(table, said[max(0, i - order + 1) : i], said[i]) for i in range(1, len(said)))
