"""What the organisms' lists have at a share of false entries that nulls of other seeds tell."""

from organism_error_rates import error_rate_table, false_share, kept_by_default, kept_by_q
from organism_scores import Row


def row(organism: str, seed: int, scores: list[float], right: tuple[int, ...] = ()) -> Row:
    """A line of the table with these scores, of which those at some places are right."""
    none = dict.fromkeys(("rank", "kind", "score", "precision", "recall", "fve", "isolation"))
    return Row(
        *(organism, "base", "both", "rdfc-joint"),
        **none,
        seed=seed,
        listed=False,
        findings=0,
        entries=0,
        chance=0.0,
        concerned=0.1,
        seconds=1.0,
        tested=100,
        scores=scores,
        found=[True] * len(scores),
        concerning=[place in right for place in range(len(scores))],
    )


NULLS = [row(name, seed, [0.3, 0.05]) for name in ("ordinary", "shuffled") for seed in (0, 1)]
TOPIC = row("topic", 0, [0.9, 0.8, 0.2, 0.1], (1,))


def test_what_is_stronger_than_the_nulls_is_kept():
    kept = kept_by_q(TOPIC, [*NULLS, TOPIC])
    assert kept is not None and (kept.entries, kept.concerning, kept.first) == (2, 1, 2)
    assert kept_by_default(TOPIC).entries == 4


def test_a_null_is_told_by_the_nulls_of_other_seeds_alone():
    strong = row("ordinary", 0, [0.9])
    rows = [strong, row("shuffled", 0, [0.95]), row("ordinary", 1, [0.2])]
    kept = kept_by_q(strong, rows)
    assert kept is not None and kept.entries == 1
    assert kept_by_q(strong, rows[:2]) is None


def test_the_tables_count_what_is_kept_and_what_is_false():
    rows = [TOPIC, *NULLS]
    (line,) = (one for one in error_rate_table(rows) if "topic" in one)
    assert [cell.strip() for cell in line.split("|")[5:11]] == ["2", "1", "2", "4", "1", "2"]
    rows.append(row("ordinary", 2, [0.9]))
    assert "in 1 of 5 crosscoders of nulls" in false_share(rows)
    assert "1 entries of 500" in false_share(rows)
    assert false_share([TOPIC]) == "no crosscoders of nulls"
