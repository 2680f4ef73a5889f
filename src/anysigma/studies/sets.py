"""How many sets of generated images a figure is a mean over, where nobody says."""

SETS, LEAST, WITHIN = 5, 2, 500  # sets where none are asked for; evaluations of one image in each of them


def sets_of(asked: int | None, evaluations: int) -> int:
    """Sets as asked for; where null, as many of 5 as keep the evaluations of one image in each of them within 500.

    Never fewer than 2: one has no error. A function of the sampler alone, so that every machine takes as many.
    """
    return max(LEAST, min(SETS, WITHIN // evaluations)) if asked is None else asked


def fewer(asked: int | None, evaluations: int) -> dict[str, str]:
    """For the card: why there are not as many sets as for other samplers; nothing where there are."""
    sets = sets_of(asked, evaluations)
    if asked is not None or sets == SETS:
        return {}
    return {"fewer_sets": f"{sets} in place of {SETS}: {evaluations:,} network evaluations an image"}
