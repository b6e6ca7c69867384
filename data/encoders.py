"Models of other people that a measure of diversity asks: an encoder of texts, an NLI classifier."

import functools

from data.weights import package


def cached(states):
    "`embed` for `metrics.embedding_diversity`: each text is embedded once, however many ask."
    cache = {}

    def embed(texts):
        new = list(dict.fromkeys(text for text in texts if text not in cache))
        cache.update(zip(new, states(new) if new else ()))
        return [cache[text] for text in texts]
    return embed


def sentences(name):
    "A model of sentence-transformers as `embed`."
    model = package("sentence_transformers", "--encoder").SentenceTransformer(name)
    return cached(lambda new: model.encode(new, show_progress_bar=len(new) > 256))


def nli(name):
    """A classifier of transformers as `relation` for `metrics.nli_diversity`: the score of its
    likeliest label. ValueError if its labels do not say which is which."""
    classify = package("transformers", "--nli").pipeline(
        "text-classification", model=name, truncation=True)
    labels = list(classify.model.config.id2label.values())
    if not {"contradiction", "entailment"} <= {label.lower() for label in labels}:
        raise ValueError(f"--nli {name}: its labels are {', '.join(labels)}, not contradiction and "
                         "entailment: try roberta-large-mnli")

    @functools.cache
    def relation(premise, hypothesis):
        found = classify({"text": premise, "text_pair": hypothesis})
        found = found[0] if isinstance(found, list) else found
        sign = {"contradiction": 1, "entailment": -1}.get(found["label"].lower(), 0)
        return sign * found["score"]
    return relation
