"Models of other people that a measure of diversity asks: an encoder of texts, an NLI classifier."

import functools


def sentences(name):
    """A model of sentence-transformers as `embed` for `metrics.embedding_diversity`; each text is
    embedded once, however many measures ask."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError("--encoder needs: pip install sentence-transformers") from None
    model, cache = SentenceTransformer(name), {}

    def embed(texts):
        new = list(dict.fromkeys(t for t in texts if t not in cache))
        if new:
            cache.update(zip(new, model.encode(new, show_progress_bar=len(new) > 256)))
        return [cache[t] for t in texts]
    return embed


def nli(name):
    """A classifier of transformers as `relation` for `metrics.nli_diversity`: the score of its
    likeliest label. ValueError if its labels do not say which is which."""
    try:
        from transformers import pipeline
    except ImportError:
        raise ImportError("--nli needs: pip install transformers") from None
    classify = pipeline("text-classification", model=name, truncation=True)
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
