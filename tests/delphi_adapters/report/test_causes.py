"""What latents cause, in the report's tables and on a latent's card."""

from delphi_adapters.report.causes import equivalence_sheet, patch_sheet, with_equivalence
from delphi_adapters.report.sheets import Latent
from sparsify_crosscoder import LatentCard
from sparsify_crosscoder.evaluation.latent_card import UNKNOWN
from sparsify_crosscoder.intervals import Interval
from sparsify_crosscoder.interventions.equivalence_found import Equivalence, Equivalences

KL = (Interval(0.1, 0.05, 0.2), Interval(0.2, 0.1, 0.3))


def effect(latent: int, value: float, cosine: float | None) -> Equivalence:
    correlation, null, gap = (Interval(x, x - 0.1, x + 0.1) for x in (value, 0.05, value - 0.05))
    return Equivalence(latent, 0.5, cosine, 9, correlation, null, gap, KL)


FOUND = Equivalences(
    ["a", "b"], 3, True, [effect(4, 0.1, 0.9), effect(2, 0.4, 0.5), effect(0, 0.3, 0.7)], {}
)


def test_cosines_that_rank_latents_the_other_way_are_told():
    told = FOUND.summary()
    assert told["same"] == 2 and told["median_correlation"] == 0.3 and told["median_cosine"] == 0.7
    assert told["rank_correlation"] == -1
    assert "2 of 3 do more alike" in FOUND.text()


def test_a_sheet_has_those_that_do_most_alike_first():
    sheet = equivalence_sheet(FOUND)
    assert sheet.rows[0] == [
        Latent(2),
        "0.40 (0.30 to 0.50)",
        "0.05",
        "+0.35 (+0.25 to +0.45)",
        "0.50",
    ]
    assert [row[0] for row in sheet.rows] == [Latent(2), Latent(0), Latent(4)]
    assert sheet.note.startswith("2 of 3 do more alike")


def test_a_card_has_what_was_measured_and_says_what_was_not():
    cards = with_equivalence([LatentCard(0), LatentCard(1)], FOUND)
    said = [dict(card.lines())["in both models"] for card in cards]
    assert said[1] == UNKNOWN
    assert said[0] == (
        "ablating it does to both what correlates by 0.30 (0.20 to 0.40); 0.05 with another's "
        "direction in the second; decoder cosine 0.70"
    )
    assert with_equivalence(cards[1:], None) == cards[1:]


def test_patches_are_told_with_their_ceiling_and_random_clusters():
    one = {"value": 0.25, "low": 0.2, "high": 0.3}
    restored = {"kl": one, "share": one}
    found = {
        "models": [
            {
                "source": 1,
                "kl": one,
                "ceiling": restored,
                "groups": [{"name": "all latents", "latents": 1024, "restored": restored}],
                "halves": [],
                "gap": None,
                "entries": [
                    {"rank": 1, "kind": "shared", "restored": restored, "random": [0.011, -0.02]}
                ],
            }
        ]
    }
    rows = patch_sheet(found, ["a", "b"]).rows
    kl, share = "0.2500 (0.2000 to 0.3000)", "25.0% (20.0% to 30.0%)"
    assert rows == [
        ["b", "nothing", kl, "-", "-"],
        ["b", "the whole difference at this layer", kl, share, "-"],
        ["b", "all latents (1,024)", kl, share, "-"],
        ["b", "difference 1 (shared)", kl, share, "1.1%, -2.0%"],
    ]
