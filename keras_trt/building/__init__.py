"""From a model to an engine that can be trusted: from the cache, else exported, typed, built, compared, kept."""
